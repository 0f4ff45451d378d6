"""Held-out series, whole -> predictions of all ranks -> Score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from torch import nn

from aneurysm.cache.cache import Cache
from aneurysm.errors import AneurysmError, CacheError, StoreError
from aneurysm.labels import LABELS, SITES, UNKNOWN
from aneurysm.metrics import Score, score_series
from aneurysm.prediction_table import PredictionRow, candidate_entry, table_text
from aneurysm.processes.files import write_atomically
from aneurysm.training.config import ResolvedConfig
from aneurysm.training.ranks import gathered

if TYPE_CHECKING:
    from aneurysm.windows.predict import SeriesPrediction

CANDIDATES: Final = 10
"""Places a series, at most: enough for a FROC curve up to 8 false positives a scan."""

PredictionsByVolume = dict[int, "SeriesPrediction"]
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
) -> PredictionsByVolume:
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

    found: PredictionsByVolume = {}
    stop, error = False, None
    view = config.view_on(cache.spec)
    options = WindowOptions(
        view,
        pooling=config.validation.pooling,
        overlap=config.validation.overlap,
        batch_size=config.validation.batch_size,
        device=device,
        precision=config.precision,
        workers=workers,
        ct_windows_hu=config.ct_windows_hu,
        mr_range=config.mr_range,
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
    parts: list[tuple[PredictionsByVolume, bool, str | None]] = gathered((found, stop, error))
    for _, _, told in parts:
        if told is not None:
            raise CacheError(f"validation can't go on: {told}")
    if any(left for _, left, _ in parts):
        raise ValidationStoppedError("validation was left")
    return {volume: values for part, _, _ in parts for volume, values in part.items()}


def score_predictions(cache: Cache, predictions: PredictionsByVolume) -> Score:
    """Score the predictions against the labels of the cache, all and by modality."""
    volumes = sorted(predictions)
    true, scores = cache.labels[volumes], np.stack([predictions[v].probabilities for v in volumes])
    return score_series(true, scores, [cache.modalities[v] for v in volumes])


def write_predictions(
    path: Path,
    cache: Cache,
    predictions: PredictionsByVolume,
    folds: Mapping[int, int],
    *,
    epoch: int,
    part: ValidationPart = "val",
) -> None:
    """
    Write the table of `aneurysm.prediction_table`, with the truth and the candidates of each series.

    Parameters
    ----------
    folds
        By the series' index in the cache.
    epoch
        That the checkpoint has seen.
    """
    rows = []
    for volume in sorted(predictions, key=lambda volume: cache.uids[volume]):
        prediction = predictions[volume]
        rows.append(
            PredictionRow(
                cache.uids[volume],
                # All digits: with fewer, the surest would tie, which the score tells apart.
                probabilities=dict(zip(LABELS, prediction.probabilities.tolist(), strict=True)),
                candidates=[
                    candidate_entry(SITES[c.site], c.probability, c.lps_mm, c.zyx) for c in prediction.candidates
                ],
                modality=cache.modalities[volume],
                fold=folds[volume],
                part=part,
                epoch=epoch,
                digest=cache.spec.digest,
                truth={
                    label: None if y == UNKNOWN else int(y)
                    for label, y in zip(LABELS, cache.labels[volume], strict=True)
                },
            )
        )
    write_atomically(path, table_text(rows, path.suffix))
