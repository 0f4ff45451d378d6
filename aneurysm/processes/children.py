"""Child: a process beside this one, for what may crash, hang, or take all memory there is.

It runs one function at a time, ends with this process, and is replaced when it is dead. multiprocessing's own
processes and pools won't do: the workers of a Dask cluster may not have any (they are daemons), and a pool breaks as a
whole when one process of it dies.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from aneurysm.errors import AneurysmError, Reason, UsageError
from aneurysm.processes.child_main import MessageKind
from aneurysm.processes.threads import limit_threads, single_threaded

T = TypeVar("T")

# sys.path is given, as multiprocessing does: what can be imported here can be imported there.
_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from aneurysm.processes.child_main import main; main(*map(json.loads, sys.argv[2:]))"
)
_LONGEST_S: Final = 3600.0
"""The operating system can't wait for any number of seconds."""

_CAUSES: Final = {"SIGKILL": ": out of memory is the usual cause"} | dict.fromkeys(
    ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV"), ": a crash in a decoder or another library is the usual cause"
)
"""By the signal that ended a process; of others somebody sent it."""
_LEAST_MB: Final = 250
"""With less every series would fail."""


@dataclass(frozen=True)
class Limits:
    """
    What one series may take: wall time in seconds and resident memory in MB (10^6 bytes). None is no limit.

    Raises
    ------
    UsageError
        The time is not above 0, or the memory less than any process needs.
    """

    timeout_s: float | None = None
    memory_mb: int | None = None

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not self.timeout_s > 0:  # nor NaN
            raise UsageError(f"timeout_s is {self.timeout_s}, more than 0 is needed")
        if self.memory_mb is not None and self.memory_mb < _LEAST_MB:
            raise UsageError(
                f"memory_mb is {self.memory_mb}, at least {_LEAST_MB} is needed: the libraries alone take about 200"
            )

    def at_most(self, memory_mb: int) -> Limits:
        """Return these limits, with ``memory_mb`` where they have none of memory, or a higher one."""
        return replace(self, memory_mb=min(memory_mb, self.memory_mb or memory_mb))

    @property
    def memory(self) -> int | None:
        """The limit of memory in bytes."""
        return None if self.memory_mb is None else self.memory_mb * 10**6


NO_LIMITS: Final = Limits()


@dataclass(frozen=True)
class ChildTiming:
    """How long processes are waited for."""

    start_s: float = 600.0
    """A hundred nodes that all import from one busy file system take minutes."""
    starts: int = 10
    """Attempts at starting a process. Three were too few where memory is short, or somebody kills at random."""
    poll_s: float = 0.05
    """Between two looks at the memory of a process that has a limit."""
    kill_s: float = 1.0
    """A process that hangs in the kernel, as on a dead file server, does not die: it is not waited for."""
    idle_s: float | None = 60.0
    """A process without a job ends after so long, or None: not before this one. A Dask worker outlives the run that
    started its children."""


class LostError(AneurysmError):
    """A child gave no answer: it died, or took more than it may and was killed."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class StoppedError(AneurysmError):
    """The children were ended while this one was at work, or before it began: the run is over."""


class Child:
    """One process, started at its first job, and again after its end."""

    def __init__(self, timing: ChildTiming = ChildTiming()) -> None:
        self._timing = timing
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._stopped = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Number of the process, None if there is none."""
        return None if self._process is None else self._process.pid

    def run(
        self,
        function: Callable[..., T],
        *args: Any,
        limits: Limits = NO_LIMITS,
        on_note: Callable[[Any], None] = lambda _: None,
    ) -> T:
        """
        Return what ``function`` returns in the process; raise what it raises.

        ``function``, arguments and answer are pickled.

        Parameters
        ----------
        on_note
            Called with what ``function`` sends meanwhile by `aneurysm.processes.child_main.send_note`.

        Raises
        ------
        LostError
            The process died, or was killed since it exceeded ``limits``.
        StoppedError
            `stop` was called meanwhile.
        AneurysmError
            No process could be started.
        """
        try:
            # One that is there may have ended since nothing was to do, just now.
            for attempt in range(self._timing.starts):
                time.sleep(0.2 * attempt)
                if self._has_taken(function, args, limits):
                    break
            else:
                raise AneurysmError(
                    f"a process to work in could not be started ({sys.executable}), or ended before it had a job, "
                    f"{self._timing.starts} times. Is there memory for it, or a limit of processes? It may have said "
                    "more above"
                )
            end = None if limits.timeout_s is None else time.monotonic() + limits.timeout_s
            kind, content = self._answer(limits, end)
            while kind == "note":
                on_note(content)
                kind, content = self._answer(limits, end)
        except BaseException:
            self._end()
            raise
        if kind == "error":
            raise content
        answer: T = content
        return answer

    def rest(self) -> None:
        """End the process, which is idle; the next job starts one."""
        self._end()

    def stop(self) -> None:
        """Kill the process, and let none be started; from any thread."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def wait(self, patience_s: float | None = None) -> None:
        """Wait for the end of a process that was stopped, for ``patience_s`` or as long as `ChildTiming.kill_s`."""
        process = self._process
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._timing.kill_s if patience_s is None else patience_s)

    def _start(self) -> Connection:
        with self._lock:
            if self._stopped:
                raise StoppedError("the run is over")
            if self._connection is not None:
                return self._connection
            ours, theirs = socket.socketpair()
            path = json.dumps([str(folder) for folder in sys.path])
            with ours, theirs:
                numbers = theirs.fileno(), os.getpid(), self._timing.idle_s
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                    [sys.executable, "-P", "-c", _START, path, *map(json.dumps, numbers)],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # libraries print what they like; standard output is the command's
                    pass_fds=[theirs.fileno()],
                    env=os.environ | single_threaded(),
                )
                self._connection = Connection(ours.detach())
            return self._connection

    def _has_taken(self, function: Callable[..., Any], args: tuple[Any, ...], limits: Limits) -> bool:
        try:
            connection = self._start()
            connection.send((function, args, limits.memory))
            if not connection.poll(patience_s := self._timing.start_s):
                raise AneurysmError(f"a process to work in did not start within {patience_s:.0f} s ({sys.executable})")
            kind, content = connection.recv()
        except (EOFError, OSError):
            self._end()
            return False
        if kind == "error":  # it can't make anything of the job
            raise content
        return True

    def _answer(self, limits: Limits, end: float | None) -> tuple[MessageKind, Any]:
        assert self._connection is not None
        try:
            while not self._connection.poll(_step(end, limits, self._timing.poll_s)):
                if end is not None and time.monotonic() >= end:
                    raise LostError(Reason.TIMED_OUT, f"not done after {limits.timeout_s:g} s, the limit of time")
                if limits.memory is not None and (used := self._resident()) > limits.memory:
                    raise LostError(
                        Reason.OUT_OF_MEMORY,
                        f"more than {limits.memory_mb} MB, the limit of memory (it had {used // 10**6} MB)",
                    )
            message: tuple[MessageKind, Any] = self._connection.recv()
        except (EOFError, OSError):
            code = self._end(patience_s=self._timing.kill_s)
            if self._stopped:
                raise StoppedError("the run is over") from None
            raise LostError(Reason.WORKER_KILLED, f"the process that worked on it {_end_in_words(code)}") from None
        if message[0] != "note" and limits.memory is not None and self._resident() > limits.memory / 2:
            self._end()  # what it did not give back would count against the next one
        return message

    def _end(self, patience_s: float = 0.0) -> int | None:
        """Kill the process unless it ends by itself; forget it; return its exit code, None if it would not die."""
        with self._lock:
            process, connection = self._process, self._connection
            self._process = self._connection = None
        if process is None or connection is None:
            return None
        connection.close()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(patience_s)
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(self._timing.kill_s)
        return None

    def _resident(self) -> int:
        """Return the bytes of memory that the process has, 0 if it has just ended."""
        assert self._process is not None
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text("ascii").split()
        except OSError:
            return 0
        return int(pages[1]) * resource.getpagesize()


class Runner(Protocol):
    """What runs functions that read what a stranger wrote: `Children`, or for debugging `InProcess`."""

    def run(self, function: Callable[..., T], *args: Any, limits: Limits = NO_LIMITS) -> T:
        """Return what ``function`` returns; see `Child.run`."""

    def rest(self) -> None:
        """Give back what is held for the next call."""

    def stop(self) -> None:
        """End what is running, and run nothing more."""


class InProcess:
    """Runs functions in this process, in the thread that asks: no limit holds, and what crashes takes it along."""

    def __init__(self) -> None:
        limit_threads(1)

    def run(self, function: Callable[..., T], *args: Any, limits: Limits = NO_LIMITS) -> T:  # noqa: ARG002
        """Call ``function``."""
        return function(*args)

    def rest(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


@contextmanager
def runner(workers: int) -> Iterator[Runner]:
    """Yield what runs functions for ``workers`` threads: processes, which end with the block, or for 0 this one."""
    if workers == 0:
        yield InProcess()
    else:
        with Children() as children:
            yield children


class Children:
    """Children for any number of threads: each call has one for itself, and they are used again."""

    def __init__(self, timing: ChildTiming = ChildTiming()) -> None:
        self._timing = timing
        self._all: list[Child] = []
        self._idle: list[Child] = []
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(self, function: Callable[..., T], *args: Any, limits: Limits = NO_LIMITS) -> T:
        """Do as `Child.run` does, in a child that has nothing else to do."""
        with self._lock:
            if self._stopped:
                raise StoppedError("the run is over")
            if not self._idle:
                self._all.append(Child(self._timing))
                self._idle.append(self._all[-1])
            child = self._idle.pop()
        try:
            return child.run(function, *args, limits=limits)
        finally:
            with self._lock:
                self._idle.append(child)

    def rest(self) -> None:
        """End those that have nothing to do: for a while only some, or none, will be needed, and they hold memory."""
        with self._lock:
            idle = list(self._idle)
        for child in idle:
            child.rest()

    def stop(self) -> None:
        """Kill all of them, and let none be started; threads that wait for one get a `StoppedError`."""
        with self._lock:
            self._stopped = True
        for child in self._all:
            child.stop()
        end = time.monotonic() + self._timing.kill_s  # for all: a node's whole file server may be dead
        for child in self._all:
            child.wait(max(0.0, end - time.monotonic()))


def _step(end: float | None, limits: Limits, poll_s: float) -> float | None:
    """Return for how long to wait for the answer before the limits are looked at; None is for ever."""
    left = None if end is None else min(max(0.0, end - time.monotonic()), _LONGEST_S)
    if limits.memory is None:
        return left
    return poll_s if left is None else min(poll_s, left)


def _end_in_words(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
    return f"was ended by {name}{_CAUSES.get(name, '')}"
