"""Cache, configuration -> which series a run trains on, and which it holds out."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm.cache.cache import Cache
from aneurysm.errors import UsageError
from aneurysm.labels import UNKNOWN
from aneurysm.patches.views.mip import Mip
from aneurysm.patches.views.view import PLANES, View
from aneurysm.training.config import TrainConfig
from aneurysm.training.folds import assign_folds, read_folds

_PRESENT = -1
_FEWEST_LEVELS = 64
"""Of a window, else it is told: steps of a grey level show, as edges that are not there."""


@dataclass(frozen=True)
class Split:
    """
    Series by index in the `Cache`.

    Attributes
    ----------
    train, val
        To learn from, and held out; series of the fold that is kept for a test are in neither.
    folds
        (n,) int64: the fold of every series of the cache.
    warnings
        What the user should know before hours are spent.
    limit
        What ``limit_train`` left of the series to learn from, in words; empty if that is all of them.
    """

    train: list[int]
    val: list[int]
    folds: NDArray[np.int64]
    warnings: tuple[str, ...]
    limit: str

    def prevalence(self, cache: Cache) -> list[float | None]:
        """Return the share of positives of each label among the series to learn from of which it is known."""
        labels = cache.labels[self.train]
        known, positive = (labels != UNKNOWN).sum(axis=0), (labels == 1).sum(axis=0)
        return [int(p) / int(n) if n else None for p, n in zip(positive, known, strict=True)]

    def digest(self, cache: Cache) -> int:
        """Return a number that tells other folds from these, whatever the order of the series."""
        return zlib.crc32(repr(sorted(zip(cache.uids, self.folds.tolist(), strict=True))).encode())


def split_series(cache: Cache, config: TrainConfig, *, folds_file: Path | None = None) -> Split:
    """
    Hold out a fold of patients; leave out other modalities, and what is beyond a limit.

    Parameters
    ----------
    folds_file
        In place of the configuration's, for a run that resumes with the folds that it wrote.

    Raises
    ------
    DataError
        The file of folds is not what it should be.
    UsageError
        Nothing is left to train on or to hold out, no series has the modality asked for, there are more positive series
        than ``limit_train`` allows to keep, or there is no lesion to learn from.
    """
    if not len(cache):
        raise UsageError(f"{cache.root} holds no volumes. Run aneurysm precache")
    folds = _folds_of(cache, config, folds_file)
    if unknown := sorted(set(config.modality) - set(cache.modalities)):
        there = ", ".join(sorted(set(cache.modalities)))
        raise UsageError(f"no series in {cache.root} has the modality {unknown[0]!r}; there are {there}")
    if config.test_fold is not None and not (folds == config.test_fold).any():
        # A wrong number would train on the test.
        raise UsageError(
            f"no series is in fold {config.test_fold}, to be kept for a test; there are folds "
            f"{', '.join(map(str, np.unique(folds).tolist()))}"
        )
    chosen = np.array([not config.modality or m in config.modality for m in cache.modalities])
    chosen &= folds != (-1 if config.test_fold is None else config.test_fold)
    train = np.flatnonzero(chosen & (folds != config.fold))
    val = np.flatnonzero(chosen & (folds == config.fold))
    for name, series in (("train on", train), ("hold out", val)):
        if len(series) == 0:
            raise UsageError(
                f"fold {config.fold} of {len(set(folds.tolist()))} leaves no series to {name}: of "
                f"{len(cache)} series, {int(chosen.sum())} are of the modalities asked for, and not kept for a test"
            )
    if config.limit_train is not None and config.keep_positives:
        train_series = _with_all_positives(cache, train, config.limit_train)
    else:
        train_series = _limited(cache, train, config.limit_train)
    val_series = _limited(cache, val, config.limit_val)
    view = config.resolved().view_on(cache.spec)
    if not (np.isin(cache.lesion_volume, train_series).any() or _shown_whole(cache, train_series, view)):
        raise UsageError(
            f"none of the {len(train_series)} series to train on has a lesion whose place is known: all patches would "
            "be negative. Take other folds or modalities, or more series; or patches that hold whole volumes, which "
            "are labelled as their series are"
        )
    warnings = _warnings(cache, train_series, val_series, config, view)
    return Split(train_series, val_series, folds, warnings, _describe_limit(cache, train, train_series))


def split_folds(cache: Cache, config: TrainConfig) -> dict[int, Split]:
    """
    Return the split of each run of a cross-validation by the fold that it holds out: all but the one kept for a test.

    Raises
    ------
    DataError, UsageError
        As `split_series` does of any of them.
    """
    if not len(cache):
        raise UsageError(f"{cache.root} holds no volumes. Run aneurysm precache")
    folds = np.unique(_folds_of(cache, config)).tolist()
    return {
        fold: split_series(cache, config.model_copy(update={"fold": fold}))
        for fold in folds
        if fold != config.test_fold
    }


def _folds_of(cache: Cache, config: TrainConfig, folds_file: Path | None = None) -> NDArray[np.int64]:
    """Return the fold of each series, of the file or as patients are dealt."""
    keys, present = cache.patient_keys, cache.labels[:, _PRESENT]
    path = folds_file or config.folds_file
    if path is None:
        return assign_folds(cache.uids, keys, present, cache.modalities, n_folds=config.folds, seed=config.seed)
    return read_folds(path, cache.uids, keys)


def _shown_whole(cache: Cache, series: Sequence[int], view: View) -> bool:
    """Return True if a positive series is labelled as a whole, or so small that a patch holds all of it."""
    fits = (cache.shapes[list(series)] <= np.array(view.shape)).all(axis=1) | (view.scope == "series")
    return bool((fits & (cache.labels[list(series), _PRESENT] == 1)).any())


def _limited(cache: Cache, series: NDArray[np.int64], most: int | None) -> list[int]:
    """Return ``most`` series, positive and negative ones in their proportion, at least one of each that there is."""
    if most is None or most >= len(series):
        return [int(i) for i in series]
    positive, other = _positive_and_other(cache, series)
    n = round(most * len(positive) / len(series))
    n = min(max(n, 1 if positive and most > 1 else 0), most - (1 if other and most > 1 else 0), len(positive))
    return sorted(positive[:n] + other[: most - n])


def _with_all_positives(cache: Cache, series: NDArray[np.int64], most: int) -> list[int]:
    """
    Return ``most`` series: every positive one, and of the others the same share in each modality.

    One factor in all of them multiplies the odds of an aneurysm by one number: thinned otherwise, the modality itself
    would say something about the label that it does not say in the data.

    Raises
    ------
    UsageError
        The positive ones alone are as many, or more.
    """
    if most >= len(series):
        return [int(i) for i in series]
    positive, other = _positive_and_other(cache, series)
    room = most - len(positive)
    if room < 1:
        raise UsageError(
            f"keep_positives: {len(positive)} of the {len(series)} series to train on are positive, and limit_train is "
            f"{most}, which leaves none for the others. Give at least {len(positive) + 1}, or leave keep_positives "
            "out: then positive ones are thinned as the others are"
        )
    by_modality: dict[str, list[int]] = {}
    for i in other:
        by_modality.setdefault(cache.modalities[i], []).append(i)
    # The k-th of n has its turn at (k - 1/2) / n: any beginning of this order holds the same share of each modality.
    turns = sorted(
        ((k + 0.5) / len(members), modality, i)
        for modality, members in by_modality.items()
        for k, i in enumerate(members)
    )
    return sorted(positive + [i for *_, i in turns[:room]])


def _positive_and_other(cache: Cache, series: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Return the positive series and the others, each in an order that is drawn from their UIDs."""
    order = sorted(series.tolist(), key=lambda i: hashlib.sha256(cache.uids[i].encode()).digest())
    positive = [i for i in order if cache.labels[i, _PRESENT] == 1]
    return positive, [i for i in order if cache.labels[i, _PRESENT] != 1]


def _describe_limit(cache: Cache, series: NDArray[np.int64], chosen: Sequence[int]) -> str:
    """Return how many of ``series``, positive and other ones by modality, are among the ``chosen``."""
    if len(chosen) == len(series):
        return ""
    positive, other = _positive_and_other(cache, series)
    picked = set(chosen)

    def share(members: Sequence[int]) -> str:
        return f"{len(picked.intersection(members))} of {len(members)}"

    parts = [
        f"{modality} {share([i for i in other if cache.modalities[i] == modality])}"
        for modality in sorted({cache.modalities[i] for i in other})
    ]
    return f"limit_train takes {share(positive)} positive series, {share(other)} others ({', '.join(parts)})"


def _warnings(
    cache: Cache, train: Sequence[int], val: Sequence[int], config: TrainConfig, view: View
) -> tuple[str, ...]:
    found = []
    known = {int(v) for v in cache.labels[list(val), _PRESENT]} & {0, 1}
    if len(known) < 2:
        kind = "no labels" if not known else "only positives" if known == {1} else "only negatives"
        found.append(
            f"the {len(val)} held-out series have {kind}: there is no AUC, and the best epoch is that of the lowest "
            "training loss"
        )
    if view.scope == "patch":
        small = [i for i in [*train, *val] if (cache.shapes[i] < np.array(view.shape)).any()]
        if small:
            patch, shape = (" x ".join(map(str, s)) for s in (view.shape, cache.shapes[small[0]].tolist()))
            found.append(
                f"{len(small)} of {len(train) + len(val)} volumes are smaller than a patch of {patch} voxels, as "
                f"{cache.uids[small[0]]} of {shape}: they are padded with air"
            )
    if isinstance(view, Mip) and view.axes == (PLANES["sagittal"],) and view.slab is None:
        found.append(
            "sagittal projections of the whole head show no left and right: labels of one side can't be told from "
            "those of the other. Add another plane, or project slabs (slab_mm)"
        )
    return tuple(found) + _coarse_windows(cache, config)


def _coarse_windows(cache: Cache, config: TrainConfig) -> tuple[str, ...]:
    """Return what is to be said of windows of CT in which the cache has few grey levels."""
    if "CTA" not in cache.modalities:
        return ()
    stored = cache.spec.intensity.CT
    step = (stored.clip_hu[1] - stored.clip_hu[0]) / (stored.levels - 1)
    return tuple(
        f"the window of CT from {low:g} to {high:g} HU has {int((high - low) / step) + 1} grey levels in this cache, "
        f"which stores CT in steps of {step:.3g} HU (spec {cache.spec.name}): take a cache of int16"
        for low, high in config.ct_windows_hu
        if (high - low) / step < _FEWEST_LEVELS
    )
