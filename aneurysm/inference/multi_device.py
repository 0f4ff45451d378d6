"""predict_on(): series spread over several devices, a process each, and their answers as they come.

The parent holds the list and hands out a series whenever a process asks for one. A process that dies takes the series
with it that it held and had not answered; each of these is tried once more, alone in a process, so that the one that
kills is found, and costs no other.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, Literal

import torch

from aneurysm.errors import AneurysmError, Reason, UsageError, words_of
from aneurysm.inference.prediction import Prediction
from aneurysm.inference.predictor import load_predictor
from aneurysm.inference.read_series import Failure, failure
from aneurysm.inference.series_paths import SeriesPath
from aneurysm.models.device import check_devices, checked_device
from aneurysm.processes.child_main import start_worker
from aneurysm.processes.threads import usable_cpus
from aneurysm.windows.predict import OnWindows

_KILLED: Final = "the process that predicted it died twice: out of memory, or a crash in a library"

_Kind = Literal["next", "windows", "answer", "end", "error"]


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
        What a process says of the checkpoints, the options or a cache of another spec; or one died with no series in
        its hands, as it would again.
    """
    todo = deque(paths)
    suspects: deque[SeriesPath] = deque()
    lanes: list[_Lane] = []
    try:
        # One by one: should a signal end this, those that were started are ended, too.
        lanes.extend(_Lane(device, len(devices), checkpoints, options) for device in devices[: len(todo)])
        while lanes:
            ready = wait([lane.connection for lane in lanes])
            for lane in [lane for lane in lanes if lane.connection in ready]:
                try:
                    kind, content = lane.connection.recv()
                except (EOFError, OSError):
                    # EOF is the end of a process that is dead, and of no other: each has its own pipe.
                    lost = lane.end()
                    if not lost:
                        raise AneurysmError(
                            f"the process on {lane.device} died before it had a series: out of memory, or a crash"
                        ) from None
                    if lane.alone:
                        yield from (failure(path.uid, Reason.WORKER_KILLED, _KILLED) for path in lost)
                    else:
                        suspects.extend(lost)
                    lanes.remove(lane)
                    if todo or suspects:
                        lanes.append(_Lane(lane.device, len(devices), checkpoints, options))
                    continue
                if kind == "answer":
                    del lane.held[content.series_uid]
                    lane.windows = (0, 0)
                    yield content
                elif kind == "windows":
                    lane.windows = content
                    on_windows(*(sum(counts) for counts in zip(*(lane.windows for lane in lanes), strict=True)))
                elif kind == "error":
                    raise content
                elif kind == "next":
                    lane.give(todo, suspects)
                elif not lane.go_on(bool(todo or suspects)):
                    lanes.remove(lane)
    finally:
        for lane in lanes:
            lane.end()


class _Lane:
    """
    A device's process, as the parent sees it.

    Attributes
    ----------
    held
        Series that it has and has not answered, by UID.
    alone
        It has one suspect, and gets nothing beside it.
    windows
        Done of the series that it is at, and of how many.
    """

    def __init__(self, device: str, lanes: int, checkpoints: Sequence[str | Path], options: Mapping[str, Any]) -> None:
        self.device = device
        self.held: dict[str, SeriesPath] = {}
        self.windows = (0, 0)
        self.alone = self._given = False
        # Spawned, not forked: CUDA does not survive a fork.
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        threads = max(1, usable_cpus() // lanes)
        given = (theirs, os.getpid(), threads, list(checkpoints), {**options, "device": device})
        # Not a daemon, which could have no processes of its own to read with; it watches for the parent's end.
        self._process = context.Process(target=_work, args=given, daemon=False)
        with _signals_later():
            self._process.start()
        theirs.close()

    def give(self, todo: deque[SeriesPath], suspects: deque[SeriesPath]) -> None:
        """Send a series, or None: then it answers what it has."""
        path = None
        if suspects and not self._given:
            path, self.alone = suspects.popleft(), True
        elif todo and not self.alone:
            path = todo.popleft()
        if path is not None:
            self.held[path.uid] = path
            self._given = True
        self._send(path)

    def go_on(self, more: bool) -> bool:
        """Return True if another round follows, for what has come up since; without one the process ends."""
        self.alone = self._given = False
        self._send(more)
        if not more:
            self._process.join()
            self.connection.close()
        return more

    def end(self) -> list[SeriesPath]:
        """Kill the process, if it is alive; return what it had."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        return list(self.held.values())

    def _send(self, content: Any) -> None:
        # It may have died meanwhile, which shows at the next turn.
        with suppress(OSError):
            self.connection.send(content)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back: amid its start a process would be left without its job, and complain of that."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where handlers don't run, and can't be set
        return
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(n, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def _work(
    connection: Connection, parent: int, threads: int, checkpoints: list[str | Path], options: dict[str, Any]
) -> None:
    """Predict what the parent hands out, round after round."""
    start_worker(parent, threads)

    def tell(kind: _Kind, content: Any = None) -> None:
        connection.send((kind, content))

    def handed_out() -> Iterator[SeriesPath]:
        while True:
            tell("next")
            path = connection.recv()
            if path is None:
                return
            yield path

    try:
        predictor = load_predictor(checkpoints, **options)
        more = True
        while more:
            for answer in predictor.predict(handed_out(), lambda done, of: tell("windows", (done, of))):
                tell("answer", answer)
            tell("end")
            more = connection.recv()
    except AneurysmError as error:
        tell("error", error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has gone
    except Exception as error:  # noqa: BLE001 - the parent ends, and says why
        traceback.print_exc()
        tell("error", AneurysmError(f"the process on {options['device']} failed: {words_of(error)}"))
