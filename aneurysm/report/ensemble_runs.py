"""Several runs -> one set of predictions: other series are put together, the same series are averaged over models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aneurysm.errors import DataError, SpecMismatchError
from aneurysm.probability import mean_of_logits
from aneurysm.report.run import Run
from aneurysm.report.run_tables import Candidates, Predictions

RunEnsemble = Literal["logits", "ranks"]


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """
    Return the runs that held out the same series together; different groups have no series in common.

    Raises
    ------
    DataError
        A run is named twice; two runs share some series but not all, know other labels of them, or were dealt into
        other folds: then one may have been trained on what the other is tested on.
    SpecMismatchError
        They predicted caches of different specs.
    """
    if len({run.root.resolve() for run in runs}) < len(runs):
        raise DataError("a run is named twice")
    of_spec = [run for run in runs if run.digest is not None]
    for run in of_spec[1:]:
        if run.digest != of_spec[0].digest:
            raise SpecMismatchError(
                f"the runs are of caches of different specs: {of_spec[0].root} of digest {of_spec[0].digest}, "
                f"{run.root} of {run.digest}"
            )
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            first = group[0]
            _check_folds(first, run)
            mine, theirs = set(run.predictions.uids.tolist()), set(first.predictions.uids.tolist())
            if mine == theirs:
                _check_truth(first, run)
                group.append(run)
                break
            if common := mine & theirs:
                raise DataError(
                    f"{first.root} and {run.root} both predicted {min(common)} and {len(common) - 1} more, but not the "
                    "same series: runs are put together if they have none in common, and averaged if they have all"
                )
        else:
            groups.append([run])
    return groups


def combine(groups: Sequence[Sequence[Run]], ensemble: RunEnsemble = "logits") -> Predictions:
    """
    Average each group's runs, and put the groups together.

    ``logits`` is the mean of log-odds. ``ranks`` is the mean of each run's ranks, as shares from 0 to 1: it helps where
    runs have other scales, but it is no probability any more.
    """
    parts = [_averaged([run.predictions for run in group], ensemble) for group in groups]
    uids = np.concatenate([p.uids for p in parts])
    order = np.argsort(uids, kind="stable")
    return Predictions(
        uids[order],
        np.concatenate([p.patients for p in parts])[order],
        np.concatenate([p.modalities for p in parts])[order],
        np.concatenate([p.folds for p in parts])[order],
        np.concatenate([p.probabilities for p in parts])[order],
        np.concatenate([p.truth for p in parts])[order],
    )


def combine_candidates(groups: Sequence[Sequence[Run]], radius_mm: float) -> Candidates | None:
    """
    Return the candidates of all runs, or None if a run has none.

    In a group of several runs, those of one series and site that lie within ``radius_mm`` of the most probable of them
    are one, there, with the mean of the runs' probabilities; a run that has none there counts as 0.
    """
    merged = []
    for group in groups:
        parts = [run.candidates for run in group]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        merged.append(known[0] if len(known) == 1 else _merged(known, radius_mm))
    return Candidates(
        np.concatenate([m.uids for m in merged]),
        np.concatenate([m.sites for m in merged]),
        np.concatenate([m.probabilities for m in merged]),
        np.concatenate([m.lps_mm for m in merged]),
    )


def _check_folds(first: Run, run: Run) -> None:
    for uid in first.assigned.keys() & run.assigned.keys():
        if first.assigned[uid] != run.assigned[uid]:
            raise DataError(
                f"{first.root} and {run.root} were dealt into other folds (of {uid}: {first.assigned[uid]} and "
                f"{run.assigned[uid]}), so that one may have been trained on what the other is tested on"
            )


def _check_truth(first: Run, run: Run) -> None:
    differ = (first.predictions.truth != run.predictions.truth).any(axis=1)
    if differ.any():
        uid = first.predictions.uids[differ][0]
        raise DataError(f"{first.root} and {run.root} know other labels of {uid}: were they trained on other data?")


def _averaged(parts: Sequence[Predictions], ensemble: RunEnsemble) -> Predictions:
    first = parts[0]
    if ensemble == "ranks":
        mean = np.mean([_ranks(p.probabilities) for p in parts], axis=0)
    elif len(parts) == 1:
        return first
    else:
        mean = mean_of_logits([p.probabilities for p in parts])
    return Predictions(first.uids, first.patients, first.modalities, first.folds, mean, first.truth)


def _ranks(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    return np.asarray((rankdata(probabilities, axis=0) - 0.5) / len(probabilities))


def _merged(parts: Sequence[Candidates], radius_mm: float) -> Candidates:
    uids = np.concatenate([p.uids for p in parts])
    sites = np.concatenate([p.sites for p in parts])
    probabilities = np.concatenate([p.probabilities for p in parts])
    lps_mm = np.concatenate([p.lps_mm for p in parts])
    run_of = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    left = np.ones(len(uids), bool)
    kept, means = [], []
    by_place: dict[tuple[str, int], list[int]] = {}
    order = np.argsort(-probabilities, kind="stable")
    for i in order:
        by_place.setdefault((str(uids[i]), int(sites[i])), []).append(int(i))
    for i in order:
        if not left[i]:
            continue
        others = np.array(by_place[str(uids[i]), int(sites[i])])
        near = others[left[others] & (np.linalg.norm(lps_mm[others] - lps_mm[i], axis=1) <= radius_mm)]
        left[near] = False
        best = np.zeros(len(parts))
        np.maximum.at(best, run_of[near], probabilities[near])
        kept.append(i)
        means.append(best.mean())
    index = np.array(kept, np.int64)
    return Candidates(uids[index], sites[index], np.array(means, np.float64), lps_mm[index])
