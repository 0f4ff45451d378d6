"""Runs -> Evaluation, all that metrics.json, the tables, the plots and the page are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aneurysm.cache.cache import Cache
from aneurysm.errors import UsageError
from aneurysm.report.bootstrap import FEWEST_SAMPLES, Weights, patient_weights
from aneurysm.report.calibration import CalibrationFit, calibrate
from aneurysm.report.ensemble_runs import RunEnsemble, combine, combine_candidates, group_runs
from aneurysm.report.froc import Froc, froc
from aneurysm.report.intervals import Estimate, difference_estimate
from aneurysm.report.ranking import Ranking, rank, rank_by
from aneurysm.report.run import PARTS, Run, read_run
from aneurysm.report.run_tables import Candidates, Predictions
from aneurysm.report.source import Lesions, acquisitions, lesions, localisation, open_runs_cache
from aneurysm.report.thresholds import Operation, Rates, operate, patient_halves, present_by


@dataclass(frozen=True)
class EvaluateOptions:
    """
    How runs are evaluated.

    Attributes
    ----------
    cache
        Folder or URL of the cache, if not where the runs' configurations say.
    local_cache, local_cache_gb
        See `open_cache`.
    truth
        Table with the lesions' radii (the phantom's truth.csv).
    ensemble
        How runs of the same series are averaged.
    target_precision
        That the threshold of present has to reach.
    match_radius_mm
        How far from a lesion's point a candidate may lie.
    samples, seed
        Of the bootstrap behind localisation and the bands of curves; ``seed`` also deals the patients into halves.

    Raises
    ------
    UsageError
        An option has no such value.
    """

    cache: str | Path | None = None
    local_cache: str | None = None
    local_cache_gb: float | None = None
    truth: Path | None = None
    ensemble: RunEnsemble = "logits"
    target_precision: float = 0.80
    match_radius_mm: float = 5.0
    samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ensemble not in ("logits", "ranks"):
            raise UsageError(f"runs can't be averaged by {self.ensemble!r}: choose logits or ranks")
        if not 0 < self.target_precision <= 1:
            raise UsageError(f"a precision of {self.target_precision:g} can't be reached: give more than 0, at most 1")
        if not 0 < self.match_radius_mm < float("inf"):
            raise UsageError(f"the match radius is {self.match_radius_mm:g} mm: give more than 0")
        # All samples of a metric are held at once: of 4,348 series 10,000 take about 2 GB.
        if not FEWEST_SAMPLES <= self.samples <= 10_000:
            raise UsageError(f"{self.samples} bootstrap samples: give {FEWEST_SAMPLES} to 10,000")
        if self.seed < 0:
            raise UsageError(f"the seed is {self.seed}: give 0 or more")


@dataclass(frozen=True)
class RunResult:
    """One run on its own series; ``gain`` is the score of the ensemble there minus the run's, None if it is alone."""

    run: Run
    ranking: Ranking
    gain: Estimate | None


@dataclass(frozen=True)
class Evaluation:
    """
    The results.

    Attributes
    ----------
    runs
        Each by itself.
    weights
        (samples, n): the bootstrap's.
    groupings
        Rankings by what, then by class: modality, and plane and slice thickness where the cache is there.
    decisions
        In the same groups, how good the decisions about present are.
    calibration
        None if scores are no probabilities: means of ranks.
    cache, no_cache
        The cache, or why it is not used.
    lesions, candidates
        None without a cache, or without candidates.
    froc, froc_same_site, no_froc
        Wherever the candidate's site is, and with the site right; or why there is none.
    """

    options: EvaluateOptions
    runs: tuple[RunResult, ...]
    predictions: Predictions
    weights: Weights
    ensembled: bool
    ranking: Ranking
    groupings: dict[str, dict[str, Ranking]]
    decisions: dict[str, dict[str, Rates]]
    operation: Operation
    calibration: CalibrationFit | None
    cache: Cache | None
    no_cache: str
    lesions: Lesions | None
    candidates: Candidates | None
    froc: Froc | None
    froc_same_site: Froc | None
    no_froc: str

    @property
    def digest(self) -> str | None:
        """Of the spec of the runs' cache; None if neither they nor a cache say."""
        said = next((r.run.digest for r in self.runs if r.run.digest is not None), None)
        return said if said is not None or self.cache is None else self.cache.spec.digest

    @property
    def part(self) -> str:
        """What series these are, where all runs agree: see `Run.part`. If any picked an epoch, ``val``."""
        parts = {r.run.part for r in self.runs}
        return parts.pop() if len(parts) == 1 else "val"

    @property
    def series(self) -> str:
        """How these series are called."""
        return PARTS[self.part]


def evaluate_runs(runs: Sequence[str | Path | Run], options: EvaluateOptions | None = None) -> Evaluation:
    """
    Evaluate the held-out predictions of one or several runs.

    Parameters
    ----------
    runs
        Folders, or runs that are read already.

    Raises
    ------
    DataError
        A run's folder is not what it should be, or the runs don't go together; see `read_run` and `group_runs`.
    CacheError
        The cache can't be read, or the runs' caches are of different specs.
    """
    options = options or EvaluateOptions()
    if not runs:
        raise UsageError("name at least one run")
    read = [run if isinstance(run, Run) else read_run(run) for run in runs]
    groups = group_runs(read)
    predictions = combine(groups, options.ensemble)
    cache, no_cache = open_runs_cache(read, options.cache, options.local_cache, options.local_cache_gb)
    weights = patient_weights(predictions.patients, options.samples, options.seed)
    second = patient_halves(predictions, options.seed)
    groups_by = {"modality": predictions.modalities}
    located: Lesions | None = None
    if cache is not None:
        acquired = acquisitions(cache, predictions)
        groups_by |= {"plane": acquired.planes, "slice thickness": acquired.thickness}
        located = lesions(cache, predictions, options.truth)
    candidates = combine_candidates(groups, options.match_radius_mm)
    no_froc, curves = "", None
    if cache is None or located is None:
        no_froc = f"Candidates can't be compared with lesions: {no_cache}."
    elif candidates is None:
        no_froc = "Not every run has candidates, so there is nothing to compare with the lesions."
    else:
        where = localisation(predictions, located, candidates)
        if len(where.lesion_scan):
            patients = np.unique(predictions.patients, return_inverse=True)[1]
            curves = [
                froc(where, weights, options.match_radius_mm, same_site=same, patients=patients)
                for same in (False, True)
            ]
        else:
            no_froc = "The cache has no lesion with a place in these series."
    operation = operate(predictions, second, options.target_precision)
    return Evaluation(
        options,
        _each(groups, predictions),
        predictions,
        weights,
        any(len(group) > 1 for group in groups),
        rank(predictions),
        {by: rank_by(predictions, names) for by, names in groups_by.items()},
        {by: present_by(predictions, operation, names) for by, names in groups_by.items()},
        operation,
        calibrate(predictions, second) if options.ensemble == "logits" else None,
        cache,
        no_cache,
        located,
        candidates,
        curves[0] if curves else None,
        curves[1] if curves else None,
        no_froc,
    )


def _each(groups: Sequence[Sequence[Run]], combined: Predictions) -> tuple[RunResult, ...]:
    results = []
    for group in groups:
        first = group[0].predictions
        together = None
        if len(group) > 1:
            together = rank(combined.select(np.searchsorted(combined.uids, first.uids))).score_influence
        for run in group:
            alone = rank(run.predictions)
            gain = None
            if together is not None and alone.score_influence is not None:
                gain = difference_estimate(together, alone.score_influence)
            results.append(RunResult(run, alone, gain))
    return tuple(results)
