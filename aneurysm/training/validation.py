"""Held-out series, whole -> predictions of all ranks -> Score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch import nn

from aneurysm.cache.cache import Cache
from aneurysm.csv_table import csv_text
from aneurysm.errors import AneurysmError, CacheError, StoreError
from aneurysm.labels import LABELS, SITES, UNKNOWN
from aneurysm.metrics import Score, score_series
from aneurysm.processes.files import write_atomically
from aneurysm.training.config import ResolvedConfig
from aneurysm.training.ranks import gathered

if TYPE_CHECKING:
    from aneurysm.windows.predict import SeriesPrediction

CANDIDATES: Final = 10
"""Places a series, at most: enough for a FROC curve up to 8 false positives a scan."""

Predictions = dict[int, "SeriesPrediction"]
"""By the series' index in the cache."""
ValidationPart = Literal["val", "test", "external"]
"""Series that picked the best epoch, those of the fold kept for a test, and those of another cache."""


class ValidationStoppedError(AneurysmError):
    """Validation was left, because a rank is to stop."""


def predict_series(
    model: nn.Module,
    cache: Cache,
    volumes: Sequence[int],
    config: ResolvedConfig,
    device: torch.device,
    *,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    stopped: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int, int], None] = lambda _series, _window, _windows: None,
) -> Predictions:
    """
    Predict the series, each rank its part; all ranks get all.

    Parameters
    ----------
    stopped
        Asked after each series, whether to leave.
    on_progress
        Called with the number of series that this rank has done; then with how many windows of the next one are done,
        and of how many.

    Raises
    ------
    StoppedError
        On all ranks, if one was to stop.
    CacheError
        On all ranks, if one found a damaged volume: a score without it would be of other series.
    """
    from aneurysm.windows.predict import WindowOptions, predict_cached

    found: Predictions = {}
    stop, error = False, None
    options = WindowOptions(
        patch_shape=config.patch,
        pooling=config.validation.pooling,
        overlap=config.validation.overlap,
        batch_size=config.validation.batch_size,
        device=device,
        precision=config.precision,
        workers=workers,
        ct_windows_hu=config.ct_windows_hu,
        candidates=CANDIDATES,
    )
    try:
        for prediction in predict_cached(
            model, cache, volumes[rank::ranks], options, lambda done, of: on_progress(len(found), done, of)
        ):
            found[prediction.volume] = prediction
            on_progress(len(found), 0, 0)
            if stop := stopped():
                break
    except (CacheError, StoreError) as caught:
        error = str(caught)
    parts: list[tuple[Predictions, bool, str | None]] = gathered((found, stop, error))
    for _, _, told in parts:
        if told is not None:
            raise CacheError(f"validation can't go on: {told}")
    if any(left for _, left, _ in parts):
        raise ValidationStoppedError("validation was left")
    return {volume: values for part, _, _ in parts for volume, values in part.items()}


def score_predictions(cache: Cache, predictions: Predictions) -> Score:
    """Score the predictions against the labels of the cache, all and by modality."""
    volumes = sorted(predictions)
    true, scores = cache.labels[volumes], np.stack([predictions[v].probabilities for v in volumes])
    return score_series(true, scores, [cache.modalities[v] for v in volumes])


def write_predictions(
    path: Path,
    cache: Cache,
    predictions: Predictions,
    folds: Mapping[int, int],
    *,
    epoch: int,
    part: ValidationPart = "val",
) -> None:
    """
    Write a row per series: ``series_uid, modality, fold, part, epoch, digest``, ``p: <label>`` and ``y: <label>``.

    Labels are the 14; ``y`` is empty where one is unknown. ``digest`` is that of the cache's spec.

    Parameters
    ----------
    folds
        By the series' index in the cache.
    epoch
        That the checkpoint has seen.
    """
    header = ["series_uid", "modality", "fold", "part", "epoch", "digest"]
    rows = []
    for volume in _by_uid(cache, predictions):
        labels = ["" if y == UNKNOWN else int(y) for y in cache.labels[volume]]
        about = [cache.uids[volume], cache.modalities[volume], folds[volume], part, epoch, cache.spec.digest]
        # All digits: with fewer, the surest would tie, which the score tells apart.
        rows.append([*about, *map(repr, predictions[volume].probabilities.tolist()), *labels])
    _write(path, [*header, *(f"p: {name}" for name in LABELS), *(f"y: {name}" for name in LABELS)], rows)


def write_candidates(path: Path, cache: Cache, predictions: Predictions) -> None:
    """
    Write ``series_uid, site, probability, z, y, x, x_mm, y_mm, z_mm``, the most probable of a series first.

    z, y, x are voxel coordinates in the cached volume; the last three are the same place in patient space (LPS).
    """
    rows = [
        [cache.uids[volume], SITES[c.site], repr(c.probability), *(f"{v:.3f}" for v in (*c.zyx, *c.lps_mm))]
        for volume in _by_uid(cache, predictions)
        for c in predictions[volume].candidates
    ]
    _write(path, ["series_uid", "site", "probability", "z", "y", "x", "x_mm", "y_mm", "z_mm"], rows)


def _by_uid(cache: Cache, predictions: Predictions) -> list[int]:
    return sorted(predictions, key=lambda volume: cache.uids[volume])


def _write(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    write_atomically(path, csv_text(header, rows))
