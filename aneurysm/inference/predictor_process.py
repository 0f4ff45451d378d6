"""What runs in a process that predicts: a predictor that stays from job to job, and series that are read ahead.

The functions are for `aneurysm.processes.children.Child.run`. Importing them loads neither torch nor decoders: whoever
starts such a process may do without.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aneurysm.errors import AneurysmError, SeriesRejectedError, words_of
from aneurysm.processes.child_main import send_note
from aneurysm.processes.children import ChildTiming
from aneurysm.processes.threads import limit_threads, usable_cpus

if TYPE_CHECKING:
    from aneurysm.inference.prediction import Prediction
    from aneurysm.inference.predictor import Predictor
    from aneurysm.inference.read_series import Failure, ReadSeries, SeriesReader
    from aneurysm.inference.series_paths import SeriesPath

TIMING: Final = ChildTiming(idle_s=None)
"""Libraries and weights take seconds to load: such a process waits for its next series, however late it comes."""


class NotLoadedError(AneurysmError):
    """The process was started since, and is to `load` a predictor first."""


@dataclass(frozen=True)
class PredictorSettings:
    """What a predictor is made of: ``options`` are those of `load_predictor`; ``threads`` it may use, None: all."""

    checkpoints: tuple[str, ...]
    options: dict[str, Any]
    threads: int | None = None


@dataclass
class _Loaded:
    """``reading`` are the series on their way, by UID."""

    predictor: Predictor
    reader: SeriesReader
    pool: ThreadPoolExecutor
    reading: dict[str, Future[ReadSeries | Failure]] = field(default_factory=dict)


_loaded: _Loaded | None = None


def load(settings: PredictorSettings) -> None:
    """Load the predictor. Raises what `aneurysm.inference.predictor.load_predictor` does."""
    global _loaded
    from aneurysm.inference.predictor import load_predictor
    from aneurysm.inference.read_series import SeriesReader

    limit_threads(settings.threads or usable_cpus())  # after torch was loaded, for a child starts with one
    predictor = load_predictor(settings.checkpoints, **settings.options)
    pool = ThreadPoolExecutor(max(1, predictor.options.workers), "read-ahead")
    _loaded = _Loaded(predictor, SeriesReader(predictor.routing, predictor.limits), pool)


def _of_this_process() -> _Loaded:
    if _loaded is None:
        raise NotLoadedError("this process has loaded no predictor")
    return _loaded


def predict(path: SeriesPath, following: Sequence[SeriesPath]) -> Prediction | Failure:
    """
    Predict a series, and read the following ones meanwhile; windows that are done, and of how many, are notes.

    Raises
    ------
    NotLoadedError
        The process is new.
    UsageError
        The series is DICOM, and the model was trained on plain arrays.
    AneurysmError
        See `aneurysm.inference.predictor.Predictor.predict`.
    """
    loaded = _of_this_process()
    loaded.predictor.check([path])
    wanted = {p.uid: p for p in (path, *following)}
    loaded.reading = {
        uid: loaded.reading.get(uid) or loaded.pool.submit(loaded.reader.read, p) for uid, p in wanted.items()
    }
    return loaded.predictor.answer(loaded.reading.pop(path.uid).result(), lambda *counts: send_note(counts))


def predict_folder(folder: str) -> list[float]:
    """
    Return the 14 probabilities of the series of DICOM files in a folder, which names the series.

    It is read right here, not in another process: this one may die as well, and to start another takes seconds.

    Raises
    ------
    NotLoadedError
        The process is new.
    SeriesRejectedError
        There is no answer, for what the series is.
    AneurysmError
        This process may be of no more use: after an error on a GPU, each later call fails as well. It is not the
        exception itself, whose class the parent would have to load.
    """
    from aneurysm.inference.read_series import Failure, read_or_fail
    from aneurysm.rawdata.folder import safe_source

    predictor, path = _of_this_process().predictor, Path(folder)
    try:
        answer = predictor.answer(read_or_fail(safe_source(path.name, folder=path), predictor.routing))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent has an answer to give
        traceback.print_exc()
        raise AneurysmError(words_of(error)) from None
    if isinstance(answer, Failure):
        raise SeriesRejectedError(answer.reason, answer.detail)
    return list(answer.probabilities.values())


def check_takes_dicom() -> None:
    """Raise `UsageError` if the predictor has no answer for DICOM series."""
    from aneurysm.rawdata.folder import safe_source

    _of_this_process().predictor.check([safe_source("dicom", folder=Path("dicom"))])
