"""load_predictor(): checkpoints -> Predictor; series -> Prediction, by the code that builds the cache.

A DICOM series is read, resampled and normalised in memory with the checkpoint's own cache spec: its voxels are those
that `aneurysm precache` would store. Each model answers for the modalities that it was trained on; several that know
the same one are averaged.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import torch

from aneurysm.cache.volume import CachedVolume
from aneurysm.errors import AneurysmError, Reason, SeriesRejectedError, UsageError
from aneurysm.inference.calibration import Adjustment, read_calibration
from aneurysm.inference.ensemble import Ensemble
from aneurysm.inference.grad_cam import GradCam
from aneurysm.inference.prediction import Prediction, is_finite, prediction_of
from aneurysm.inference.read_series import Failure, ReadSeries, failure, read_ahead, read_path
from aneurysm.inference.routing import Route, Routing, groups_of
from aneurysm.inference.series_paths import SeriesPath, find_paths
from aneurysm.labels import LABELS, UNKNOWN_MODALITY
from aneurysm.models.device import checked_device, raise_device_memory, usual_precision
from aneurysm.processes.children import NO_LIMITS, Children, Limits, LostError
from aneurysm.training.checkpoint import Checkpoint, load_checkpoint
from aneurysm.windows.grid import MemoryVolume
from aneurysm.windows.predict import OnWindows, SeriesPrediction, WindowOptions, predict_or_pass, predict_sources

_NO_NUMBER: Final = "the model's answer is not a number; --precision fp32 may help"


@dataclass(frozen=True)
class Member:
    """
    One of a predictor's models.

    Attributes
    ----------
    route
        What it takes, and answers for.
    options
        How windows are laid, run and pooled; of members that answer together those of the first.
    """

    model: torch.nn.Module
    route: Route
    options: WindowOptions


class Predictor:
    """
    One model, or several, of which each series is answered by those that know its modality; made by `load_predictor`.

    Attributes
    ----------
    routing
        Which models answer for a series.
    options
        How windows are laid, run and pooled, for the first model; device, workers and batch size are those of all.
    adjustment
        What is done to the probabilities of a series.
    limits
        What reading one DICOM series may take.
    """

    def __init__(
        self,
        members: Sequence[Member],
        adjustment: Adjustment | None = None,
        limits: Limits = NO_LIMITS,
        *,
        flip: bool = False,
    ) -> None:
        self.options = members[0].options
        with raise_device_memory(str(self.options.device), self.options.batch_size):
            for member in members:
                member.model.eval().to(member.options.device)
        self._members, self._flip = tuple(members), flip
        self._models: dict[tuple[int, ...], torch.nn.Module] = {}
        self.routing = Routing(tuple(member.route for member in members))
        self.adjustment = adjustment or Adjustment()
        self.limits = limits
        self._children = Children()
        weakref.finalize(self, self._children.stop)

    def model(self, group: tuple[int, ...]) -> torch.nn.Module:
        """Return the models of these numbers as one, which all take the same windows."""
        if group not in self._models:
            models = [self._members[i].model for i in group]
            single = len(models) == 1 and not self._flip
            self._models[group] = models[0] if single else self._ensemble(models, group).eval()
        return self._models[group]

    def _ensemble(self, models: list[torch.nn.Module], group: tuple[int, ...]) -> Ensemble:
        return Ensemble(models, flip=self._flip, planes=self._members[group[0]].options.view.planes)

    def __call__(self, series_path: str | Path) -> Prediction:
        """
        Predict one series: a folder of its DICOM files, one multi-frame file, or a cached volume.

        Raises
        ------
        UsageError
            There is no such path, more or less than one series at it, or one that the model can't take; see `check`.
        SeriesRejectedError
            The series can't become a volume, takes more than ``limits``, or takes the process along that reads it.
        CacheError
            The cached volume is damaged, or of another spec.
        DeviceMemoryError
            The memory does not hold the windows.
        AneurysmError
            The model's answer is not a number.
        """
        paths = find_paths(Path(series_path))
        if len(paths) != 1:
            uids = ", ".join(p.uid for p in paths[:3])
            raise UsageError(f"{series_path} holds {len(paths)} series ({uids}, ...): name the folder of one")
        self.check(paths)
        answer = self.answer(self._read(paths[0]))
        if isinstance(answer, Failure):
            raise AneurysmError(f"series {answer.series_uid}: {answer.detail}")
        return answer

    def _read(self, path: SeriesPath) -> ReadSeries:
        """Read one series, DICOM in a process that the next call uses again."""
        if isinstance(path, CachedVolume):
            return read_path(path, self.routing)
        try:
            return self._children.run(read_path, path, self.routing, limits=self.limits)
        except LostError as error:
            raise SeriesRejectedError(error.reason, error.detail) from error

    def answer(
        self, read: ReadSeries | Failure, on_windows: OnWindows = lambda _done, _of: None
    ) -> Prediction | Failure:
        """
        Predict one series that was read; one that can't be stays a `Failure`. See `predict`.

        Raises
        ------
        DeviceMemoryError
            The memory does not hold the windows.
        """
        if isinstance(read, Failure):
            return read
        group = self.routing.models(read.volume.modality)
        options = self._members[group[0]].options
        with raise_device_memory(str(options.device), options.batch_size):
            (answer,) = predict_sources(self.model(group), [read.volume], options, on_windows)
        return self._checked_answer(answer, read)

    def _checked_answer(self, answer: SeriesPrediction, read: ReadSeries) -> Prediction | Failure:
        prediction = prediction_of(answer, read, self.adjustment)
        return prediction if is_finite(prediction) else failure(answer.series_uid, Reason.NOT_A_NUMBER, _NO_NUMBER)

    def predict(
        self, paths: Iterable[SeriesPath], on_windows: OnWindows = lambda _done, _of: None
    ) -> Iterator[Prediction | Failure]:
        """
        Yield an answer for each series, in order; one that has none is a `Failure`, and the next one follows.

        While the model runs, the next series are read: DICOM in processes of its own, so that a decoder that crashes,
        or a file that hangs beyond ``limits``, costs one series.

        Parameters
        ----------
        paths
            As `aneurysm.inference.series_paths.find_paths` gives them.
        on_windows
            Called as windows are done, with how many of the series that is in work, and of how many.

        Raises
        ------
        UsageError
            None of the models takes DICOM, and a series is; see `check`.
        SpecMismatchError
            A cached volume is of another spec.
        DeviceMemoryError
            The memory does not hold the windows.
        """
        reads = read_ahead(self._checked(paths), self.routing, max(1, self.options.workers), self.limits)
        group: tuple[int, ...] = ()

        def group_of(read: ReadSeries | Failure) -> tuple[int, ...]:
            nonlocal group
            if not isinstance(read, Failure):
                group = self.routing.models(read.volume.modality)
            return group  # a failure waits for no model: it comes with those before it

        with raise_device_memory(str(self.options.device), self.options.batch_size):
            for models, run in groupby(reads, group_of):
                yield from self._predict_run(models, run, on_windows)

    def _predict_run(
        self, group: tuple[int, ...], reads: Iterator[ReadSeries | Failure], on_windows: OnWindows
    ) -> Iterator[Prediction | Failure]:
        """Predict series that follow each other and are answered by the same models, whose windows share batches."""
        if not group:
            yield from (read for read in reads if isinstance(read, Failure))
            return
        order: deque[ReadSeries | Failure] = deque()

        def readable() -> Iterator[MemoryVolume | None]:
            for read in reads:
                order.append(read)
                yield None if isinstance(read, Failure) else read.volume

        options = self._members[group[0]].options
        for answer in predict_or_pass(self.model(group), readable(), options, on_windows):
            read = order.popleft()
            if isinstance(read, Failure):
                yield read
                continue
            assert answer is not None
            yield self._checked_answer(answer, read)

    def check(self, paths: Sequence[SeriesPath]) -> None:
        """
        Make sure that none of the series is DICOM if all models were trained on plain arrays.

        Of arrays without a modality nobody knows what a value means: HU, or MR's intensities, are none of them, and
        the model's answer would be confident nonsense. One such series among others is a `Failure`.

        Raises
        ------
        UsageError
            One is.
        """
        if not self.routing.takes_dicom and any(not isinstance(path, CachedVolume) for path in paths):
            raise UsageError(
                "the model was trained on plain arrays, without a modality (spec "
                f"{self.routing.routes[0].spec.name!r}): it has no answer for DICOM series. Give it volumes of a cache "
                "that CacheWriter made of such arrays; for DICOM, train on a cache of `aneurysm precache`"
            )

    def _checked(self, paths: Iterable[SeriesPath]) -> Iterator[SeriesPath]:
        for path in paths:
            self.check([path])
            yield path


def load_predictor(
    checkpoints: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    flip: bool = False,
    tta: int = 0,
    candidates: int = 10,
    overlap: float | None = None,
    batch_size: int | None = None,
    precision: str | None = None,
    workers: int = 1,
    architecture: str | None = None,
    calibration: str | Path | None = None,
    gate: float = 0.0,
    map_label: str | None = None,
    cam: bool = False,
    timeout_s: float | None = None,
    memory_mb: int | None = None,
) -> Predictor:
    """
    Load one checkpoint, or several to be ensembled.

    Parameters
    ----------
    checkpoints
        File that `aneurysm train` wrote, or several. Each answers for the modalities that it was trained on; those that
        know the same one are averaged, and have to be of one spec, patch and pooling. No code in them is run.
    device
        ``cpu``, ``cuda``, ``cuda:1``; ``auto`` takes a GPU if there is one.
    flip
        Average over the head and its mirror image; takes twice as long.
    tta
        Average also over so many draws of the augmentation that the model was trained with, the same for all series.
    candidates
        How many places to give, at most.
    overlap, batch_size
        Of windows; None: as in validation.
    precision
        ``fp32``, ``bf16`` or ``fp16``; None: fp32 on a CPU, on a GPU bf16.
    workers
        Series that are read ahead.
    architecture
        ``module:function``, for a model of one's own: a file does not get to say what code runs.
    calibration
        A calibration.json of `aneurysm evaluate`, or the folder of its report.
    gate
        See `aneurysm.inference.calibration.Adjustment`; 0: off.
    map_label
        One of `aneurysm.labels.LABELS`, of which each answer shall bring the map.
    cam
        Make the map by Grad-CAM: for a model that has none, or to see what a U-Net's deepest features say.
    timeout_s, memory_mb
        What reading one DICOM series may take: seconds, and resident memory in MB (10^6 bytes).

    Raises
    ------
    UsageError
        A file is missing, damaged, no checkpoint, or of a spec that this version can't reproduce; the checkpoints
        don't go together; the calibration is of others; an option has no such value; there is no such device.
    """
    if isinstance(checkpoints, str | Path):
        checkpoints = [checkpoints]
    if not checkpoints:
        raise UsageError("no checkpoint is given")
    fitted = None if calibration is None else read_calibration(calibration)
    if fitted is not None:
        fitted.check([Path(path) for path in checkpoints])
    adjustment = Adjustment(fitted, gate)
    loaded = [load_checkpoint(path) for path in checkpoints]
    routes = [_route(checkpoint) for checkpoint in loaded]
    for first, *others in groups_of(routes):
        for other in others:
            _check_fellow(loaded[first], loaded[other])
    device = checked_device(device)
    if map_label is not None and map_label not in LABELS:
        raise UsageError(f"there is no label {map_label!r}; choose from {', '.join(LABELS)}")
    if cam and map_label is None:
        raise UsageError("Grad-CAM (--cam) makes a map (--overlay): say of which label")
    label = None if map_label is None else LABELS.index(map_label)
    members = []
    for checkpoint, route in zip(loaded, routes, strict=True):
        validation = checkpoint.config.validation
        options = WindowOptions(
            checkpoint.config.view_on(checkpoint.spec),
            pooling=validation.pooling,
            overlap=validation.overlap if overlap is None else overlap,
            batch_size=validation.batch_size if batch_size is None else batch_size,
            device=device,
            precision=usual_precision(device) if precision is None else precision,
            workers=workers,
            ct_windows_hu=checkpoint.config.ct_windows_hu,
            candidates=candidates,
            map_label=label,
            mr_range=checkpoint.config.mr_range,
            draws=tta,
            augment=checkpoint.config.augment,
            spacing_mm=checkpoint.spec.spacing_mm,
        )
        model = checkpoint.build_model(architecture)
        members.append(Member(GradCam(model, label) if cam and label is not None else model, route, options))
    return Predictor(members, adjustment, Limits(timeout_s, memory_mb), flip=flip)


def _route(checkpoint: Checkpoint) -> Route:
    modalities = checkpoint.modalities
    if modalities is None and not checkpoint.takes_dicom:
        modalities = (UNKNOWN_MODALITY,)
    config = checkpoint.config
    windows = (repr(config.view), config.patch, config.validation.pooling, config.ct_windows_hu)
    return Route(checkpoint.spec, modalities, windows)


def _check_fellow(first: Checkpoint, other: Checkpoint) -> None:
    for what, a, b in (
        ("cache spec (digest)", first.spec.digest, other.spec.digest),
        ("view", first.config.view, other.config.view),
        ("patch", first.config.patch, other.config.patch),
        ("pooling", first.config.validation.pooling, other.config.validation.pooling),
        ("CT windows", first.config.ct_windows_hu, other.config.ct_windows_hu),
    ):
        if a != b:
            raise UsageError(f"{first.path} and {other.path} can't be ensembled: their {what} is {a} and {b}")
