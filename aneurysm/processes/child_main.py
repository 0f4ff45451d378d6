"""What runs in the process of a `aneurysm.processes.children.Child`: jobs come through a pipe, answers go back."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

from aneurysm.processes.threads import limit_threads

MessageKind = Literal["taken", "note", "answer", "error"]
"""Of a message of the child: it has the job and begins, something on the way, or what came of it."""

_DATA_LIMITS: Final = resource.getrlimit(resource.RLIMIT_DATA)
_connection: Connection | None = None


def _start_worker(parent: int) -> None:
    """Prepare this process before its first job. ``parent`` is passed in: by now getppid() may be another process."""
    # Ctrl-C reaches every process of the terminal's group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_threads(1)

    def watch() -> None:
        # A killed parent can't end its workers: they would wait for the next job for minutes.
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(descriptor: int, parent: int, idle_s: float | None) -> None:
    """Run the jobs that come through the socket ``descriptor``, until it is closed or none has come for ``idle_s``."""
    global _connection
    os.set_inheritable(descriptor, False)
    # A batch system sends SIGTERM to every process of a job. The parent ends this one, and in time.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as file:
        file.write("1000")  # where memory ends, let the kernel kill this process, and not one that holds many series
    threading.Thread(target=_end_with_the_other_side, args=(descriptor,), daemon=True).start()
    _start_worker(parent)
    connection = _connection = Connection(descriptor)
    with suppress(EOFError, ConnectionError):  # the parent is gone, or has no more jobs
        while connection.poll(idle_s):
            connection.send(_answer(connection, connection.recv_bytes()))


def send_note(content: Any) -> None:
    """Send what the parent hands to ``on_note`` of `Child.run`; for the thread that runs the job, in a child alone."""
    assert _connection is not None
    message: tuple[MessageKind, Any] = "note", content
    _connection.send(message)


def _end_with_the_other_side(descriptor: int) -> None:
    """
    Wait until nobody holds the other end of the socket, also amid a job, and end.

    At once, unlike `_start_worker`'s watch: the claim on the series must be free when Dask gives it to another worker.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    poll.poll()
    os._exit(1)


def _answer(connection: Connection, job: bytes) -> tuple[MessageKind, Any]:
    try:
        function, args, memory = pickle.loads(job)  # noqa: S301 - from the process that started this one
        _limit_memory(memory)
        connection.send(("taken", None))
        return "answer", function(*args)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        return "error", _picklable(error)


def _limit_memory(limit: int | None) -> None:
    """
    Let an allocation fail, as a MemoryError, that would take this process beyond ``limit`` bytes by more than a tenth.

    The parent watches what is resident, but not all the time: gigabytes are filled between two looks.
    """
    soft, hard = _DATA_LIMITS
    if limit is not None:
        data, resident = _memory_bytes()
        left = max(0, limit + limit // 10 - resident)
        soft = min(n for n in (soft, data + left) if n != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _memory_bytes() -> tuple[int, int]:
    """Return what RLIMIT_DATA counts, which is reserved, whether used or not; and what is resident."""
    pages = Path("/proc/self/statm").read_text("ascii").split()
    return int(pages[5]) * resource.getpagesize(), int(pages[1]) * resource.getpagesize()


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made right here
    except Exception:  # noqa: BLE001 - whatever an exception of some library does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
