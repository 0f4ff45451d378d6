"""aneurysm evaluate: runs -> metrics, plots and a page."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EnsembleName(StrEnum):
    """How runs of the same series are averaged."""

    LOGITS = "logits"
    RANKS = "ranks"


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Folders that `aneurysm train` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; RUN/evaluation if not given.", show_default=False)
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(envvar="ANEURYSM_CACHE", help="The cache, if not where the runs say.", show_default=False),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Table with the lesions' radii: the phantom's truth.csv.", show_default=False)
    ] = None,
    ensemble: Annotated[
        EnsembleName, typer.Option(help="Mean of what, for runs of the same series.")
    ] = EnsembleName.LOGITS,
    precision: Annotated[float, typer.Option(help="Precision that the threshold of present has to reach.")] = 0.80,
    match_radius: Annotated[float, typer.Option(help="How far a candidate may lie from a lesion, in mm.")] = 5.0,
    samples: Annotated[int, typer.Option(help="Bootstrap samples.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the samples and of the patients' halves.")] = 0,
    cases: Annotated[int, typer.Option(min=0, help="Series of each kind in the gallery.")] = 4,
) -> None:
    """
    Evaluate the held-out predictions of runs: scores with intervals, calibration, localisation, plots, one page.

    Runs of different folds are put together; runs of the same fold are averaged and compared. Not for clinical use.
    """
    from aneurysm.report.evaluate import EvaluateOptions
    from aneurysm.report.evaluate import evaluate as evaluated
    from aneurysm.report.page import write_report
    from aneurysm.report.results import NOTICE

    options = EvaluateOptions(
        cache=cache,
        truth=truth,
        ensemble=ensemble.value,
        target_precision=precision,
        match_radius_mm=match_radius,
        samples=samples,
        seed=seed,
    )
    evaluation = evaluated(runs, options)
    page = write_report(evaluation, runs[0] / "evaluation" if out is None else out, cases=cases)
    ranking = evaluation.ranking
    typer.echo(f"{ranking.n} held-out series of {ranking.n_patients} patients, {len(runs)} runs")
    typer.echo(f"score        {ranking.score}")
    typer.echo(f"AUC, present {ranking.present_auc}")
    typer.echo(f"AUC, sites   {ranking.site_auc}")
    if evaluation.froc is not None:
        typer.echo(f"lesions found at 1 false positive a scan: {evaluation.froc.at[1.0]}")
    if ranking.left_out:
        names = ", ".join(f"{x.label} ({x.n_positive} of {x.n} positive)" for x in ranking.left_out)
        typer.echo(f"left out, because all that is known is of one class: {names}")
    typer.echo(f"Read {page}. {NOTICE}.")
