"""evaluate(): runs -> EvaluatedRuns, which can write their report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aneurysm.report.evaluation import EvaluateOptions, Evaluation, evaluate_runs
from aneurysm.report.page import write_report
from aneurysm.report.run import Run


@dataclass(frozen=True)
class EvaluatedRuns(Evaluation):
    """An `aneurysm.report.evaluation.Evaluation`: rankings, operating points, calibration and localisation of runs."""

    def write_report(self, out: str | Path, *, cases: int = 4) -> Path:
        """
        Write metrics.json, tables, plots and one HTML page to the folder ``out``; return the page.

        Parameters
        ----------
        cases
            Series of each kind in the gallery of pictures.

        Raises
        ------
        UsageError
            The folder can't be written.
        NoSpaceError
            The disk is full.
        """
        return write_report(self, out, cases=cases)


def evaluate(runs: Sequence[str | Path | Run], *, options: EvaluateOptions | None = None) -> EvaluatedRuns:
    """
    Evaluate the held-out predictions of one or several runs.

    Parameters
    ----------
    runs
        Folders of runs, or runs that are read already.
    options
        See `EvaluateOptions`.

    Raises
    ------
    DataError
        A run's folder is not what it should be, or the runs don't go together.
    CacheError
        The cache can't be read, or the runs' caches are of different specs.
    """
    return EvaluatedRuns(**vars(evaluate_runs(runs, options)))
