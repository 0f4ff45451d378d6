"""
RsnaPredictor: the function that the RSNA Intracranial Aneurysm Detection host calls, series by series, until the end.

One exception ends a submission there, and so do a crash, a hang and a full disk. So reading and model run in a process
of their own: it alone loads torch and decoders, it can be killed when a series takes too long, and when it dies the
next one is started. A thread could be given up but not ended, and what crashes in it takes the server along.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pandas as pd

from aneurysm.errors import AneurysmError, SeriesRejectedError, UsageError, words_of
from aneurysm.inference.calibration import fallback_rates
from aneurysm.inference.predictor_process import (
    TIMING,
    NotLoadedError,
    PredictorSettings,
    check_takes_dicom,
    load,
    predict_folder,
)
from aneurysm.labels import LABELS
from aneurysm.processes.children import Child, Limits

START_LIMIT_S: Final = 600.0
"""For loading libraries and checkpoints. The host gives a notebook 15 minutes until its server answers."""
_RESTART_LIMIT_S: Final = 300.0
_UID: Final = re.compile(r"[0-9.]{1,64}")
_log = logging.getLogger(__name__)


class RsnaPredictor:
    """
    Answers for the host's gateway, which takes a function by its name: hand it the method `predict`.

    Parameters
    ----------
    checkpoints
        As `aneurysm.inference.predictor.load_predictor` takes them.
    time_budget_s
        For one series; then it gets the base rates. Starting the process again after that does not count. The host
        allows 30 minutes for a series, and 17 s on average.
    shared_dir
        Where the gateway puts the files of a series. All that lies in it is removed after each call.
    options
        ``device``, ``flip`` and the others of `load_predictor`.

    Raises
    ------
    UsageError
        The checkpoints can't be loaded, or an option has no such value.
    AneurysmError
        The process that predicts does not start.
    """

    def __init__(
        self,
        checkpoints: Sequence[str | Path],
        *,
        time_budget_s: float = 120.0,
        shared_dir: str | Path = "/kaggle/shared",
        **options: Any,
    ) -> None:
        self._time_budget_s, self._shared = time_budget_s, Path(shared_dir)
        paths = tuple(str(Path(c).absolute()) for c in checkpoints)
        self._settings = PredictorSettings(paths, {"candidates": 0} | options)
        self._child = Child(TIMING)
        limits = Limits(START_LIMIT_S)
        try:
            self._child.run(load, self._settings, limits=limits)
            self._child.run(check_takes_dicom, limits=limits)
            self._base_rates = self._child.run(fallback_rates, paths, limits=limits)
        except BaseException as error:
            self.close()
            if isinstance(error, TypeError):  # an option that `load_predictor` has not
                raise UsageError(str(error)) from error
            if isinstance(error, AneurysmError) or not isinstance(error, Exception):
                raise
            raise AneurysmError(words_of(error)) from error

    def predict(self, series_path: str) -> pd.DataFrame:
        """
        Return one row of the 14 labels' probabilities, float64; base rates if there is no answer. Never raises.

        Parameters
        ----------
        series_path
            Folder of the DICOM files of one series.
        """
        try:
            probabilities = self._answer(str(series_path))
        except Exception as error:  # noqa: BLE001 - one that gets out of here ends the submission
            name = Path(series_path).name
            _log.warning("base rates for %s: %s", name if _UID.fullmatch(name) else "a series", words_of(error))
            probabilities = self._base_rates
        _empty(self._shared)
        return pd.DataFrame([probabilities], columns=list(LABELS))

    def close(self) -> None:
        """End the process."""
        self._child.stop()
        self._child.wait(5.0)  # a read from a disk that hangs can't be killed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, series_path: str) -> list[float]:
        try:
            try:
                return self._ask(series_path)
            except NotLoadedError:
                # Not of the series' time: were that too short for it, no series would ever get an answer again.
                self._child.run(load, self._settings, limits=Limits(_RESTART_LIMIT_S))
                return self._ask(series_path)
        except SeriesRejectedError:
            raise  # for what the series is: the process is as good as before
        except Exception:
            self._child.rest()
            raise

    def _ask(self, series_path: str) -> list[float]:
        return self._child.run(predict_folder, series_path, limits=Limits(self._time_budget_s))


def _empty(folder: Path) -> None:
    """Remove all that lies in a folder, as far as it can be done; links are removed, not followed."""
    try:
        paths = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        _log.warning("can't empty %s: %s", folder, words_of(error))
        return
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        except OSError as error:
            _log.warning("can't remove a file in %s: %s", folder, words_of(error))
