"""predict_on(): series spread over several devices, a process each, and their answers as they come.

The parent holds the list, and hands a process the next series with those that it is to read meanwhile. A series that
takes its process with it is tried once more in a new one, and costs no other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import torch

from aneurysm.errors import AneurysmError, UsageError, words_of
from aneurysm.inference.prediction import Prediction
from aneurysm.inference.predictor_process import TIMING, NotLoadedError, PredictorSettings, load, predict
from aneurysm.inference.read_series import Failure, failure
from aneurysm.inference.series_paths import SeriesPath
from aneurysm.models.device import check_devices, checked_device
from aneurysm.processes.children import Child, LostError
from aneurysm.processes.threads import usable_cpus
from aneurysm.windows.predict import OnWindows


def device_names(device: str, devices: int | Literal["auto"]) -> list[str]:
    """
    Return the device of each process.

    Parameters
    ----------
    device
        ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: GPUs if there are any.
    devices
        How many; ``auto``: all GPUs, or one process if it is the CPU.

    Raises
    ------
    UsageError
        There is no such device, there are fewer, or ``device`` names a single one.
    """
    gpus = torch.cuda.device_count()
    kind = checked_device(device)
    n = devices if devices != "auto" else max(1, gpus) if kind == "cuda" else 1
    if n == 1:
        return [kind]
    if ":" in kind:
        raise UsageError(f"{kind} is one device, and {n} were asked for")
    check_devices(n, gpus=gpus if kind == "cuda" else 0)
    return [f"cuda:{i}" if kind == "cuda" else kind for i in range(n)]


def predict_on(
    devices: Sequence[str],
    checkpoints: Sequence[str | Path],
    options: Mapping[str, Any],
    paths: Iterable[SeriesPath],
    on_windows: OnWindows = lambda _done, _of: None,
) -> Iterator[Prediction | Failure]:
    """
    Yield an answer for each series, in the order in which they come.

    Parameters
    ----------
    devices
        One for each process.
    checkpoints, options
        As for `aneurysm.inference.predictor.load_predictor`.
    paths
        Series, each once.
    on_windows
        Called as windows are done, with how many of the series that are in work, of all processes, and of how many.

    Raises
    ------
    AneurysmError
        What a process says of the checkpoints, the options or a cache of another spec; or one died while it loaded the
        predictor, as it would again.
    """
    todo = deque(paths)
    events: _Events = SimpleQueue()
    lanes = [_Lane(device, len(devices), checkpoints, options, events) for device in devices[: len(todo)]]
    ahead = max(1, int(options.get("workers", 1)))
    for _ in range(1 + ahead):
        for lane in lanes[: len(todo)]:
            lane.paths.append(todo.popleft())
    with ThreadPoolExecutor(max(1, len(lanes)), "device") as pool:
        try:
            busy = [lane for lane in lanes if pool.submit(lane.work)]
            while busy:
                lane, content = events.get()
                if isinstance(content, tuple):
                    lane.windows = content
                    on_windows(*(sum(counts) for counts in zip(*(lane.windows for lane in lanes), strict=True)))
                    continue
                if isinstance(content, BaseException):
                    raise content
                lane.paths.popleft()
                lane.windows = (0, 0)
                if todo:
                    lane.paths.append(todo.popleft())
                elif not lane.paths:
                    _take_over(lane, busy)
                if lane.paths:
                    pool.submit(lane.work)
                else:
                    busy.remove(lane)
                yield content
        finally:
            for lane in lanes:
                lane.child.stop()
            for lane in lanes:
                lane.child.wait()


def _take_over(idle: _Lane, lanes: Sequence[_Lane]) -> None:
    """Hand an idle lane a series that waits for another one."""
    longest = max(lanes, key=lambda lane: len(lane.paths))
    if len(longest.paths) > 1:
        idle.paths.append(longest.paths.pop())


class _Lane:
    """
    A device and its process.

    Attributes
    ----------
    child
        The process.
    paths
        The series in work, and those that are read meanwhile.
    windows
        Done of the series in work, and of how many.
    """

    def __init__(
        self, device: str, lanes: int, checkpoints: Sequence[str | Path], options: Mapping[str, Any], events: _Events
    ) -> None:
        threads = max(1, usable_cpus() // lanes)
        self._settings = PredictorSettings(
            tuple(str(path) for path in checkpoints), {**options, "device": device}, threads
        )
        self._device, self._events = device, events
        self.child = Child(TIMING)
        self.paths: deque[SeriesPath] = deque()
        self.windows = (0, 0)

    def work(self) -> None:
        """Predict the first of ``paths``, and put the answer, or the error that ends the run, among the events."""
        try:
            self._events.put((self, self._answer(*self.paths)))
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for events
            self._events.put((self, error))

    def _answer(self, path: SeriesPath, *following: SeriesPath) -> Prediction | Failure:
        try:
            try:
                return self._predict(path, following)
            except LostError:
                # In all likelihood for what the series is, but it may have been for what else the machine did.
                return self._predict(path, ())
        except LostError as error:
            return failure(path.uid, error.reason, f"{error.detail} (tried twice)")
        except AneurysmError:
            raise
        except Exception as error:
            raise AneurysmError(f"the process on {self._device} failed: {words_of(error)}") from error

    def _predict(self, path: SeriesPath, following: Sequence[SeriesPath]) -> Prediction | Failure:
        def ask() -> Prediction | Failure:
            return self.child.run(predict, path, following, on_note=lambda counts: self._events.put((self, counts)))

        try:
            return ask()
        except NotLoadedError:
            try:
                self.child.run(load, self._settings)
            except LostError as error:
                where = f"the process on {self._device}"
                raise AneurysmError(f"{where} died before it had a series: {error.detail}") from error
            return ask()


_Events = SimpleQueue[tuple[_Lane, Prediction | Failure | tuple[int, int] | BaseException]]
