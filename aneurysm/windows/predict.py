"""Model, volumes -> SeriesPrediction: a sliding window over the head, its answers pooled to those of the series.

Of a view of pictures there is nothing to slide: the pictures of a series are one sample, and its answer the series'.

Each volume is read once, whole, by a thread that runs ahead; windows are cut from it on the device. Windows of several
series share batches, so that short series don't leave the device half empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aneurysm.cache.cache import Cache
from aneurysm.cache.volume import CachedVolume
from aneurysm.errors import CacheError, UsageError
from aneurysm.models.device import check_precision
from aneurysm.models.output import check_output
from aneurysm.models.pooling import POOLINGS
from aneurysm.patches.augment import StoredImages, augment_images
from aneurysm.patches.augment_config import AugmentConfig
from aneurysm.patches.intensity import MrRange, WindowsHU, model_units, picture_windows
from aneurysm.patches.randomness import augmentation_seed
from aneurysm.patches.spatial import mirrored_labels
from aneurysm.patches.views.view import Box, View
from aneurysm.probability import logit, sigmoid
from aneurysm.processes.threads import ahead
from aneurysm.types import Triple
from aneurysm.volume.intensity import to_physical
from aneurysm.windows.candidates import Candidate, best_candidates, map_peaks, window_peaks
from aneurysm.windows.grid import Source, Windows, read_windows
from aneurysm.windows.series_pictures import SeriesPictures, read_series_pictures
from aneurysm.windows.stitching import StitchedMap

OnWindows = Callable[[int, int], None]
"""Called as windows are done, with how many of the series that is in work, and of how many."""
_NO_AUGMENTATION: Final = AugmentConfig.off()
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_PREFETCHED: Final = 4
"""Volumes of an object store that are on their way while the model runs."""


@dataclass(frozen=True)
class SeriesPrediction:
    """
    A model's answer for one series.

    Attributes
    ----------
    volume
        Index of the series in the cache, or among the sources given.
    series_uid
        The series.
    probabilities, logits
        (14,) float64 and float32 in the order of `aneurysm.labels.LABELS`, pooled over the windows.
    candidates
        Where, the most probable first; as many as were asked for, or fewer.
    lesion_map
        (z, y, x) float32 probabilities of the label asked for, on the volume's grid; None if none was.
    """

    volume: int
    series_uid: str
    probabilities: NDArray[np.float64]
    logits: NDArray[np.float32]
    candidates: list[Candidate]
    lesion_map: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class WindowOptions:
    """
    How windows are laid, run and pooled.

    Attributes
    ----------
    view
        What the model sees: windows that are slid over the head, or pictures of the whole series.
    mr_range
        Whose percentiles MR's model units are of; see `aneurysm.patches.augment.augment`.
    draws, augment, spacing_mm
        Logits are averaged over what the model sees as it is and so many draws of this augmentation, on voxels of this
        spacing. The draws are the same for all windows and series; maps and candidates are of what it sees as it is.
    pooling
        Key of `aneurysm.models.pooling.POOLINGS`.
    overlap
        Share of their length that neighbours have in common, at least.
    batch_size
        Windows at once.
    device
        That the model is on.
    precision
        Key of `PRECISIONS`; fp16 on a GPU alone.
    workers
        Threads that read volumes ahead; one even at 0.
    ct_windows_hu
        The channels of CT that the model was trained with; see `aneurysm.patches.intensity.model_units`.
    candidates
        How many, at most.
    map_label
        Index of the label whose map is put together; None for no map.

    Raises
    ------
    UsageError
        An option has no such value.
    """

    view: View
    pooling: str = "max"
    overlap: float = 0.5
    batch_size: int = 8
    device: torch.device | str = "cpu"
    precision: str = "fp32"
    workers: int = 0
    ct_windows_hu: WindowsHU = ()
    candidates: int = 0
    map_label: int | None = None
    mr_range: MrRange = "series"
    draws: int = 0
    augment: AugmentConfig = _NO_AUGMENTATION
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name, value, known in (("pooling", self.pooling, POOLINGS), ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise UsageError(f"there is no {name} {value!r}; choose from {', '.join(known)}")
        check_precision(self.precision, self.device)
        if self.view.scope == "series" and self.map_label is not None:
            raise UsageError(
                "the model looks at pictures of a series: it has candidates, but no map of the volume to be written. "
                "Leave out --overlay"
            )
        if not 0 <= self.overlap < 1:
            raise UsageError(f"windows can't overlap by {self.overlap:g} of their length: give 0 to below 1")
        if self.batch_size < 1 or min(self.view.shape) < 1 or self.candidates < 0 or self.draws < 0:
            raise UsageError(
                f"windows of {self.view.shape} voxels, {self.batch_size} at once, {self.candidates} candidates"
            )


def predict_cached(
    model: nn.Module,
    cache: Cache,
    volumes: Sequence[int],
    options: WindowOptions,
    on_windows: OnWindows = lambda _done, _of: None,
) -> Iterator[SeriesPrediction]:
    """
    Yield the answer for each of ``volumes`` of a cache, in their order.

    Parameters
    ----------
    model
        Maps (B, C, Z, Y, X) in model units to a `aneurysm.models.output.ModelOutput`; in eval mode, and on the device.
    cache, volumes
        A cache, and indices of its series.
    on_windows
        See `OnWindows`.

    Raises
    ------
    UsageError
        The model returns something else than it must.
    CacheError
        A volume is missing or damaged.
    """
    for answer in predict_sources(model, prefetch(cache, volumes), options, on_windows):
        yield replace(answer, volume=volumes[answer.volume])


def prefetch(cache: Cache, volumes: Iterable[int]) -> Iterator[CachedVolume]:
    """
    Yield the volumes of these indices; of a cache in an object store the next ones are on their way already.

    Raises
    ------
    StoreError
        The object store can't be read. What is wrong with one volume shows when it is read.
    """
    chosen = (cache[i] for i in volumes)
    if not cache.remote:
        yield from chosen
        return
    yield from ahead(_fetch, chosen, _PREFETCHED)


def _fetch(volume: CachedVolume) -> CachedVolume:
    if volume.remote is not None:
        with suppress(CacheError):
            volume.remote.fetch()
    return volume


def predict_sources(
    model: nn.Module,
    sources: Iterable[Source],
    options: WindowOptions,
    on_windows: OnWindows = lambda _done, _of: None,
) -> Iterator[SeriesPrediction]:
    """
    Yield the answer for each source, in their order; sources are taken as they are needed. See `predict_cached`.

    ``volume`` of an answer counts the sources.
    """
    return (answer for answer in predict_or_pass(model, sources, options, on_windows) if answer is not None)


def predict_or_pass(
    model: nn.Module,
    sources: Iterable[Source | None],
    options: WindowOptions,
    on_windows: OnWindows = lambda _done, _of: None,
) -> Iterator[SeriesPrediction | None]:
    """Do as `predict_sources`, and yield None for each None among them, in its place and without delay."""

    def read(source: Source | None) -> Windows | SeriesPictures | None:
        if source is None:
            return None
        if isinstance(options.view, Box):
            return read_windows(source, options.view.shape, options.overlap)
        return read_series_pictures(source, options.view)

    waiting: deque[_Series | None] = deque()
    batch: list[tuple[_Series, int]] = []
    for number, windows in enumerate(ahead(read, sources, max(1, options.workers))):
        if windows is None:
            if batch:  # not to wait until it is full: the next source may be thousands of Nones away
                _run(model, batch, options)
                batch = []
            waiting.append(None)
            yield from _finished(waiting)
            continue
        series = _Series(number, windows, options)
        waiting.append(series)
        for k in range(len(windows.starts)):
            batch.append((series, k))
            if len(batch) == options.batch_size:
                _run(model, batch, options)
                batch = []
                yield from _finished(waiting)
                if waiting and (first := waiting[0]) is not None:
                    on_windows(len(first.logits), len(first.windows.starts))
    if batch:
        _run(model, batch, options)
    yield from _finished(waiting)


def _finished(waiting: deque[_Series | None]) -> Iterator[SeriesPrediction | None]:
    while waiting and (waiting[0] is None or waiting[0].complete):
        series = waiting.popleft()
        yield None if series is None else series.prediction()


@dataclass
class _Series:
    """One series on its way: its voxels on the device, and the answers of its windows so far."""

    number: int
    windows: Windows | SeriesPictures
    options: WindowOptions
    logits: list[Tensor] = field(default_factory=list)
    peaks: list[Tensor] = field(default_factory=list)
    stitched: StitchedMap | None = None
    shown: tuple[Tensor, Triple] | None = None
    """The map of pictures."""

    def __post_init__(self) -> None:
        if self.options.map_label is not None:
            self.stitched = StitchedMap(self.windows.source.shape, self.options.map_label)
        intensity = self.windows.source.intensity
        self.voxels = torch.from_numpy(self.windows.voxels).to(self.options.device)
        fill = self.windows.source.fill
        self.units = (intensity.scale, intensity.offset, *intensity.window, intensity.unit == "HU", fill)

    @property
    def complete(self) -> bool:
        return len(self.logits) == len(self.windows.starts)

    def window(self, k: int) -> Tensor:
        """Return (C, Z, Y, X) stored integers."""
        if isinstance(self.windows, SeriesPictures):
            return self.voxels
        z, y, x = (
            slice(s - c, s - c + p)
            for s, c, p in zip(self.windows.starts[k], self.windows.corner, self.options.view.shape, strict=True)
        )
        return self.voxels[None, z, y, x]

    def take(
        self, k: int, logits: Tensor, dense: Tensor | None, stride_zyx: tuple[int, int, int], cam: Tensor | None
    ) -> None:
        """Note the answer of window ``k``, which are taken in order."""
        self.logits.append(logits)
        if isinstance(self.windows, SeriesPictures):
            self.shown = None if dense is None else (dense, stride_zyx)
            return
        if self.stitched is not None:
            shown, stride = (dense, stride_zyx) if cam is None else (cam, (1, 1, 1))
            if shown is None:
                raise UsageError("the model has no map, or the ensemble's maps differ in their cells; --cam makes one")
            self.stitched.add(shown, stride, self.windows.starts[k], self.options.view.shape)
        if dense is not None and self.options.candidates:
            start = np.array(self.windows.starts[k])
            peaks = map_peaks(dense, stride_zyx, self.windows.parts[k] - start)
            peaks[:, 2:] += torch.from_numpy(start).to(peaks)
            self.peaks.append(peaks)

    def prediction(self) -> SeriesPrediction:
        logits = torch.stack(self.logits).cpu()
        # In double precision: single has no probabilities between 1 - 6e-8 and 1, and so no order among the surest.
        pooled = POOLINGS[self.options.pooling](torch.from_numpy(sigmoid(logits.numpy())))
        return SeriesPrediction(
            self.number,
            self.windows.source.uid,
            pooled.numpy(),
            logit(pooled.numpy()).astype(np.float32),
            self._candidates(logits.numpy()) if self.options.candidates and not logits.isnan().any() else [],
            None if self.stitched is None else self.stitched.values,
        )

    def _candidates(self, logits: NDArray[np.float32]) -> list[Candidate]:
        source, patch, n = self.windows.source, self.options.view.shape, self.options.candidates
        if isinstance(self.windows, SeriesPictures):
            if self.shown is None:
                return []
            peaks = self.windows.peaks(*self.shown, n)
        elif self.peaks:
            peaks = torch.cat(self.peaks).cpu().numpy()
        else:
            first = np.array(self.windows.starts)
            shown = np.maximum(first, 0) + np.minimum(first + patch, source.shape) - 1
            peaks = window_peaks(logits, shown / 2, patch, n)
        # The last cell of a coarse map reaches beyond the volume.
        peaks[:, 2:] = peaks[:, 2:].clip(0, np.array(source.shape, np.float32) - 1)
        return best_candidates(peaks, source.affine_lps, n)


@torch.inference_mode()
def _run(model: nn.Module, batch: list[tuple[_Series, int]], options: WindowOptions) -> None:
    units = torch.tensor([series.units for series, _ in batch], dtype=torch.float32).to(options.device)
    scale, offset = units[:, :2, None, None, None, None].unbind(1)
    stored = torch.stack([series.window(k) for series, k in batch])
    physical = to_physical(stored.float(), scale, offset)
    window, is_ct = units[:, 2:4], units[:, 4] > 0
    if options.mr_range == "picture":
        window = picture_windows(physical, window, is_ct)
    image = model_units(physical, window, is_ct, options.ct_windows_hu)
    with _autocast(options):
        output = check_output(model(image), image)
    logits = output.logits.float()
    if options.draws:
        images = StoredImages(
            stored, units[:, 5], units[:, 0], units[:, 1], units[:, 2:4], is_ct, options.spacing_mm, options.view.planes
        )
        logits = _averaged(model, logits, images, options)
    for row, (series, k) in enumerate(batch):
        dense, cam = (None if one is None else one[row] for one in (output.dense, output.cam))
        series.take(k, logits[row], dense, output.stride_zyx, cam)


def _averaged(model: nn.Module, plain: Tensor, images: StoredImages, options: WindowOptions) -> Tensor:
    """Return the mean of the logits of the images as they are, and of those of each draw, sides swapped back."""
    total = plain
    for number in range(options.draws):
        image, swapped = augment_images(
            images,
            augmentation_seed(0, 0, number),
            options.augment,
            ct_windows_hu=options.ct_windows_hu,
            mr_range=options.mr_range,
        )
        with _autocast(options):
            logits = check_output(model(image), image).logits.float()
        total = total + (logits[:, mirrored_labels(logits.device)] if swapped else logits)
    return total / (options.draws + 1)


def _autocast(options: WindowOptions) -> AbstractContextManager[object]:
    dtype = PRECISIONS[options.precision]
    return nullcontext() if dtype is None else torch.autocast(torch.device(options.device).type, dtype)
