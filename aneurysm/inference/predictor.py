"""load_predictor(): checkpoints -> Predictor; series -> Prediction, by the code that builds the cache.

A DICOM series is read, resampled and normalised in memory with the checkpoint's own cache spec: its voxels are those
that `aneurysm precache` would store.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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
from aneurysm.inference.series_paths import SeriesPath, find_paths
from aneurysm.labels import LABELS, UNKNOWN_MODALITY
from aneurysm.models.device import checked_device, raise_device_memory, usual_precision
from aneurysm.processes.children import NO_LIMITS, Children, Limits, LostError
from aneurysm.spec import CacheSpec
from aneurysm.training.checkpoint import Checkpoint, load_checkpoint
from aneurysm.windows.grid import MemoryVolume
from aneurysm.windows.predict import OnWindows, SeriesPrediction, WindowOptions, predict_or_pass, predict_sources

_NO_NUMBER: Final = "the model's answer is not a number; --precision fp32 may help"


class Predictor:
    """
    One model, or several as one; made by `load_predictor`.

    Attributes
    ----------
    spec
        Of the volumes that the model takes.
    options
        How windows are laid, run and pooled.
    adjustment
        What is done to the probabilities of a series.
    limits
        What reading one DICOM series may take.
    takes_dicom, takes_plain_arrays
        What kinds of series the model was trained on: such as have a modality, and arrays that have none.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        spec: CacheSpec,
        options: WindowOptions,
        adjustment: Adjustment | None = None,
        limits: Limits = NO_LIMITS,
        *,
        takes_dicom: bool = True,
        takes_plain_arrays: bool = True,
    ) -> None:
        with raise_device_memory(str(options.device), options.batch_size):
            self._model = model.eval().to(options.device)
        self.spec, self.options = spec, options
        self.adjustment = adjustment or Adjustment()
        self.limits = limits
        self.takes_dicom, self.takes_plain_arrays = takes_dicom, takes_plain_arrays
        self._children = Children()
        weakref.finalize(self, self._children.stop)

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
            return read_path(path, self.spec)
        try:
            return self._children.run(read_path, path, self.spec, limits=self.limits)
        except LostError as error:
            raise SeriesRejectedError(error.reason, error.detail) from error

    def answer(
        self, read: ReadSeries | Failure, on_windows: OnWindows = lambda _done, _of: None
    ) -> Prediction | Failure:
        """
        Predict one series that was read; one that can't be stays a `Failure`. See `predict`.

        Raises
        ------
        UsageError
            It has values of a kind that the model has never seen; see `check`.
        DeviceMemoryError
            The memory does not hold the windows.
        """
        if isinstance(read, Failure):
            return read
        self._check_kind(read)
        with raise_device_memory(str(self.options.device), self.options.batch_size):
            (answer,) = predict_sources(self._model, [read.volume], self.options, on_windows)
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
            A series has values of a kind that the model has never seen; see `check`.
        SpecMismatchError
            A cached volume is of another spec.
        DeviceMemoryError
            The memory does not hold the windows.
        """
        order: deque[ReadSeries | Failure] = deque()

        def readable() -> Iterator[MemoryVolume | None]:
            for read in read_ahead(self._checked(paths), self.spec, max(1, self.options.workers), self.limits):
                order.append(read)
                if isinstance(read, Failure):
                    yield None
                    continue
                self._check_kind(read)
                yield read.volume

        with raise_device_memory(str(self.options.device), self.options.batch_size):
            for answer in predict_or_pass(self._model, readable(), self.options, on_windows):
                read = order.popleft()
                if isinstance(read, Failure):
                    yield read
                    continue
                assert answer is not None
                yield self._checked_answer(answer, read)

    def check(self, paths: Sequence[SeriesPath]) -> None:
        """
        Make sure that none of the series is DICOM if the model was trained on plain arrays alone.

        Of arrays without a modality nobody knows what a value means: HU, or MR's intensities, are none of them, and
        the model's answer would be confident nonsense.

        Raises
        ------
        UsageError
            One is.
        """
        if not self.takes_dicom and any(not isinstance(path, CachedVolume) for path in paths):
            raise UsageError(
                f"the model was trained on plain arrays, without a modality (spec {self.spec.name!r}): it has no "
                "answer for DICOM series. Give it volumes of a cache that CacheWriter made of such arrays; for DICOM, "
                "train on a cache of `aneurysm precache`"
            )

    def _checked(self, paths: Iterable[SeriesPath]) -> Iterator[SeriesPath]:
        for path in paths:
            self.check([path])
            yield path

    def _check_kind(self, read: ReadSeries) -> None:
        """Make sure that a volume's values are of the kind that the model was trained on."""
        plain = read.volume.modality == UNKNOWN_MODALITY
        if not (self.takes_plain_arrays if plain else self.takes_dicom):
            kinds = ("has a modality", "is a plain array, without a modality")
            raise UsageError(
                f"series {read.volume.uid} {kinds[plain]}; the model was trained on series of the other kind alone, "
                "whose values mean something else"
            )


def load_predictor(
    checkpoints: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    flip: bool = False,
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
        File that `aneurysm train` wrote, or several of one spec, patch and pooling. No code in them is run.
    device
        ``cpu``, ``cuda``, ``cuda:1``; ``auto`` takes a GPU if there is one.
    flip
        Average over the head and its mirror image; takes twice as long.
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
        Make the map by Grad-CAM, for a model that has none.
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
    first = loaded[0]
    for other in loaded[1:]:
        _check_fellow(first, other)
    device = checked_device(device)
    if map_label is not None and map_label not in LABELS:
        raise UsageError(f"there is no label {map_label!r}; choose from {', '.join(LABELS)}")
    if cam and map_label is None:
        raise UsageError("Grad-CAM (--cam) makes a map (--overlay): say of which label")
    label = None if map_label is None else LABELS.index(map_label)
    validation = first.config.validation
    view = first.config.view_on(first.spec)
    options = WindowOptions(
        view,
        pooling=validation.pooling,
        overlap=validation.overlap if overlap is None else overlap,
        batch_size=validation.batch_size if batch_size is None else batch_size,
        device=device,
        precision=usual_precision(device) if precision is None else precision,
        workers=workers,
        ct_windows_hu=first.config.ct_windows_hu,
        candidates=candidates,
        map_label=label,
        cam=cam,
        mr_range=first.config.mr_range,
    )
    models = [checkpoint.build_model(architecture) for checkpoint in loaded]
    if cam and label is not None:
        models = [GradCam(model, label) for model in models]
    model = models[0] if len(models) == 1 and not flip else Ensemble(models, flip=flip, planes=view.planes)
    limits = Limits(timeout_s, memory_mb)
    kinds = {"takes_dicom": first.takes_dicom, "takes_plain_arrays": first.takes_plain_arrays}
    return Predictor(model, first.spec, options, adjustment, limits, **kinds)


def _check_fellow(first: Checkpoint, other: Checkpoint) -> None:
    for what, a, b in (
        ("cache spec (digest)", first.spec.digest, other.spec.digest),
        ("view", first.config.view, other.config.view),
        ("patch", first.config.patch, other.config.patch),
        ("pooling", first.config.validation.pooling, other.config.validation.pooling),
        ("CT windows", first.config.ct_windows_hu, other.config.ct_windows_hu),
        ("training on series with a modality", first.takes_dicom, other.takes_dicom),
        ("training on plain arrays", first.takes_plain_arrays, other.takes_plain_arrays),
    ):
        if a != b:
            raise UsageError(f"{first.path} and {other.path} can't be ensembled: their {what} is {a} and {b}")
