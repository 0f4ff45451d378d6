"""
RsnaPredictor: the function that the RSNA Intracranial Aneurysm Detection host calls, series by series, until the end.

One exception ends a submission there, and so do a crash, a hang and a full disk. So reading and model run in a process
of their own: it alone loads torch and decoders, it can be killed when a series takes too long, and when it dies the
next one is started. A thread could be given up but not ended, and what crashes in it takes the server along. The price
is two milliseconds a series.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pandas as pd

from aneurysm.errors import AneurysmError, UsageError, words_of
from aneurysm.labels import LABELS

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
        For one series; then it gets the base rates. Starting the process anew after that does not count. The host
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
        self._settings = {"checkpoints": [str(Path(c).absolute()) for c in checkpoints], "options": options}
        self._base_rates: list[float] = []
        self._started = False
        self._start()
        try:
            self._await_start(START_LIMIT_S)
        except BaseException:
            self.close()
            raise

    def predict(self, series_path: str) -> pd.DataFrame:
        """
        Return one row of the 14 labels' probabilities, float64; base rates if there is no answer. Never raises.

        Parameters
        ----------
        series_path
            Folder of the DICOM files of one series.
        """
        try:
            probabilities = self._ask(str(series_path))
        except Exception as error:  # noqa: BLE001 - one that gets out of here ends the submission
            name = Path(series_path).name
            _log.warning("base rates for %s: %s", name if _UID.fullmatch(name) else "a series", words_of(error))
            probabilities = self._base_rates
        _empty(self._shared)
        return pd.DataFrame([probabilities], columns=list(LABELS))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):  # what was not sent yet can't be
                stream.close()
        with suppress(subprocess.TimeoutExpired):  # a read from a disk that hangs can't be killed
            self._process.wait(5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        # Not multiprocessing: in a script without `if __name__ == "__main__"` it would run the script again, and a fork
        # copies the gateway's threads and the GPU's state. What was put on sys.path by hand must be found there, too.
        path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aneurysm.inference.rsna_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def _await_start(self, limit_s: float) -> None:
        self._send(self._settings)
        answer = self._receive(limit_s)
        if "error" in answer:
            raise (UsageError if answer["usage"] else AneurysmError)(answer["error"])
        self._base_rates, self._started = answer["base_rates"], True

    def _ask(self, series_path: str) -> list[float]:
        try:
            if not self._started:
                # Not of the series' time: were that too short for it, no series would ever get an answer again.
                self._await_start(_RESTART_LIMIT_S)
            self._send({"series": series_path})
            answer = self._receive(self._time_budget_s)
        except Exception:
            self._restart()
            raise
        if answer.get("broken"):
            self._restart()
        if "error" in answer:
            raise AneurysmError(answer["error"])
        return [float(p) for p in answer["probabilities"]]

    def _restart(self) -> None:
        self._started = False
        self.close()
        self._start()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._death() from error

    def _receive(self, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        end, line = time.monotonic() + limit_s, b""
        while not line.endswith(b"\n"):
            if not wait([self._process.stdout.fileno()], max(0.0, end - time.monotonic())):
                raise AneurysmError(f"no answer within {limit_s:g} s")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise self._death()
            line += part
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> AneurysmError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        return AneurysmError(f"the process that predicts died (exit code {self._process.returncode})")


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
