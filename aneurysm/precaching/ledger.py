"""Ledger: what each process of a run did with which series, a JSON line for each event, for `aneurysm status`.

Every process that drives series, that of a run and each worker of a Dask cluster, writes a file of its own,

    CACHE/.runs/<run>/<host>~<pid>~<random>.jsonl

of which the first line says who writes it. Lines are handed to the kernel whole and at once, and never flushed to the
disk: a killed process has written all it did, but for the line that it was at. It holds a lock on its file as long as
it lives, and says each minute that it does, for readers that its lock does not reach.

In an object store, where nothing can be appended, the lines of some seconds are sent together, in parts of a bounded
size: ``<host>~<pid>~<random>.<part>.jsonl``.

A ledger says nothing of the data but UIDs and numbers. A run does not end because its ledger can't be written.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from aneurysm._version import __version__
from aneurysm.cache.layout import CacheLayout
from aneurysm.errors import StoreError, words_of
from aneurysm.precaching.run_id import host_name, job_name
from aneurysm.processes.locks import is_locked, lock_file
from aneurysm.processes.shared_folder import make_folder, share
from aneurysm.remote.client import ObjectStore

if TYPE_CHECKING:  # who reads ledgers needs neither pydicom nor gdcm
    from aneurysm.precaching.build_series import Outcome, SeriesJob

LEDGER_VERSION: Final = 1
HEARTBEAT_S: Final = 60.0
"""A process that lives writes at least a line in so many seconds."""
ENDING: Final = ".jsonl"
RUNS_KEPT: Final = 20
_PRUNED_AFTER_S: Final = 24 * 3600.0
_SEND_EVERY_S: Final = 10.0
_PART_BYTES: Final = 2**20
"""A part that has become longer is not written again: the next one begins."""
_IDLE_S: Final = 120.0
"""A Dask worker knows no end of a run: without a series for so long, it takes it to have come."""

HowEnded = Literal["done", "terminated", "interrupted", "error"]

_log: Final = logging.getLogger(__name__)


class _Sink(Protocol):
    def write(self, line: bytes) -> None:
        """Take a line."""

    def send(self) -> None:
        """Bring what was taken to where it can be read, if it is not there yet."""

    def close(self) -> None:
        """Give up what is held."""


class _File:
    """A file below a cache; locked as long as this process lives."""

    def __init__(self, folder: Path, name: str) -> None:
        make_folder(folder.parent)
        make_folder(folder)
        path = folder / f"{name}{ENDING}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        lock_file(self._descriptor)
        share(path, folder)

    def write(self, line: bytes) -> None:
        os.write(self._descriptor, line)

    def send(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._descriptor)


class _Objects:
    """Objects of a store; each part begins with the first line of all."""

    def __init__(self, url: str, run: str, name: str) -> None:
        self._store, self._stem = ObjectStore(url), f"{CacheLayout(Path()).runs.name}/{run}/{name}"
        self._first = b""
        self._lines: list[bytes] = []
        self._bytes = self._part = self._sent = 0
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        with self._lock:
            self._first = self._first or line
            self._lines.append(line)
            self._bytes += len(line)

    def send(self) -> None:
        with self._lock:
            lines, size = list(self._lines), self._bytes
        if size == self._sent:
            return
        self._store.write(f"{self._stem}.{self._part:04}{ENDING}", b"".join(lines))
        self._sent = size
        if size > _PART_BYTES:
            with self._lock:
                self._lines = [self._first, *self._lines[len(lines) :]]
                self._bytes, self._sent = sum(map(len, self._lines)), len(self._first)
                self._part += 1

    def close(self) -> None:
        pass


class Ledger:
    """
    What this process writes of a run; from any thread.

    Parameters
    ----------
    root, url
        The cache; ``root`` does not count if there is a ``url``.
    task
        Which part of the run this process is, as ``3/32``; empty if it is all of it, or a worker of a cluster.
    idle_s
        It closes itself when nothing was in hand for so long; None: never.
    """

    def __init__(self, root: Path, url: str, run: str, *, task: str = "", idle_s: float | None = None) -> None:
        self.is_open = True
        self._lock = threading.Lock()
        self._sink: _Sink | None = None
        self._in_hand = 0
        self._written = time.monotonic()
        self._idle_s, self._ended, self._silent = idle_s, threading.Event(), False
        name = f"{host_name()}~{os.getpid()}~{secrets.token_hex(4)}"
        with self._failures():
            self._sink = _Objects(url, run, name) if url else _File(CacheLayout(root).runs / run, name)
        self.write(
            "opened", ledger=LEDGER_VERSION, run=run, host=host_name(), pid=os.getpid(), job=job_name(os.environ),
            task=task, role="run" if idle_s is None else "worker", version=__version__,
        )  # fmt: skip
        self._thread = threading.Thread(
            target=self._beat, args=(_SEND_EVERY_S if url else HEARTBEAT_S / 2,), daemon=True
        )
        self._thread.start()

    def write(self, event: str, **values: Any) -> None:
        """Write a line; values that are empty, or 0, are left out."""
        entry = {"time": round(time.time(), 3), "event": event} | {k: v for k, v in values.items() if v}
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._sink is not None:
                with self._failures():
                    self._sink.write(line)
            self._written = time.monotonic()

    def series_started(self, job: SeriesJob) -> None:
        """Write that a series is in hand from now on."""
        with self._lock:
            self._in_hand += 1
        self.write("series_started", series=job.source.uid, bytes=job.size, expected_s=round(job.expected_s, 3))

    def series_dropped(self, job: SeriesJob) -> None:
        """Write that a series is in hand no more, and nothing came of it."""
        with self._lock:
            self._in_hand -= 1
        self.write("dropped", series=job.source.uid)

    def series_ended(self, job: SeriesJob, outcome: Outcome) -> None:
        """Write what came of a series that was in hand."""
        with self._lock:
            self._in_hand -= 1
        self.outcome(job, outcome)

    def outcome(self, job: SeriesJob, outcome: Outcome) -> None:
        """Write what came of a series."""
        self.write(
            outcome.status, series=outcome.uid, reason=str(outcome.reason), seconds=outcome.seconds,
            bytes_in=outcome.bytes_in, bytes_out=outcome.bytes_out, frames=outcome.frames, voxels=outcome.voxels,
            syntax=outcome.syntax, expected_s=round(job.expected_s, 3),
        )  # fmt: skip

    def close(self, *, send: bool = True) -> None:
        """Bring all of it to its place, unless it is not to be sent; write no more."""
        self._ended.set()
        with self._lock:
            self.is_open = False
            if self._sink is not None:
                sink = self._sink
                with self._failures():
                    if send:
                        sink.send()
                    sink.close()
            self._sink = None

    def _beat(self, every_s: float) -> None:
        while not self._ended.wait(every_s):
            quiet_s = time.monotonic() - self._written
            if self._idle_s is not None and not self._in_hand and quiet_s > self._idle_s:
                _forget(self)
                return
            if quiet_s > HEARTBEAT_S - every_s:
                if self._idle_s is not None and not self._in_hand:
                    continue  # its silence is what ends it
                self.write("alive")
            if (sink := self._sink) is not None:
                with self._failures():
                    sink.send()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Say, once, that the ledger can't be written; a file is then given up, and a store is asked again later."""
        try:
            yield
        except (OSError, StoreError) as error:
            if isinstance(error, OSError):
                self._sink = None
            if not self._silent:
                self._silent = True
                _log.warning(
                    "the ledger of this run can't be written, so `aneurysm status` lacks it: %s", words_of(error)
                )


_ledgers: Final[dict[tuple[str, str], Ledger]] = {}
_ledgers_lock: Final = threading.Lock()


def ledger_of(job: SeriesJob) -> Ledger | None:
    """
    Return this process's ledger of the run that ``job`` is of: that of `run_ledger`, or one of a cluster's worker.

    None if the job is of no run.
    """
    if not job.run:
        return None
    key = (job.url or str(job.cache), job.run)
    with _ledgers_lock:
        if (ledger := _ledgers.get(key)) is None or not ledger.is_open:
            ledger = _ledgers[key] = Ledger(job.cache, job.url, job.run, idle_s=_IDLE_S)
        return ledger


@contextmanager
def run_ledger(root: Path, url: str, run: str, task: str) -> Iterator[Ledger]:
    """
    Yield the ledger of a run, or of the ``task`` of one, that this process is, for all that build series here.

    If that ends by an error, the last line says so. The caller writes it otherwise, for it knows what came of the run.
    """
    ledger = Ledger(root, url, run, task=task)
    with _ledgers_lock:
        _ledgers[url or str(root), run] = ledger
    send = True
    try:
        yield ledger
    except BaseException as error:
        ledger.write("run_ended", how=_how(error), error=type(error).__name__)
        # A batch system gives it seconds, and a store may take as long to say that it is out of reach.
        send = not isinstance(error, SystemExit)
        raise
    finally:
        _forget(ledger, send=send)


def _how(error: BaseException) -> HowEnded:
    if isinstance(error, SystemExit):
        return "terminated"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "error"


def _forget(ledger: Ledger, *, send: bool = True) -> None:
    with _ledgers_lock:
        for key in [k for k, other in _ledgers.items() if other is ledger]:
            del _ledgers[key]
    ledger.close(send=send)


@atexit.register
def _close_all() -> None:
    for ledger in list(_ledgers.values()):
        ledger.close()


def prune_runs(layout: CacheLayout, url: str, kept: int = RUNS_KEPT) -> None:
    """Remove what is known of all but the newest runs; those of the last day stay, and those that somebody is at."""
    with suppress(OSError, StoreError):
        if url:
            _prune_objects(ObjectStore(url), layout.runs.name, kept)
        else:
            _prune_folders(layout.runs, kept)


def _prune_folders(runs: Path, kept: int) -> None:
    if not runs.is_dir():
        return
    times = {folder: folder.stat().st_mtime for folder in runs.iterdir() if folder.is_dir()}
    for folder in sorted(times, key=times.__getitem__, reverse=True)[kept:]:
        is_recent = time.time() - times[folder] < _PRUNED_AFTER_S
        if not is_recent and not any(is_locked(path) for path in folder.glob(f"*{ENDING}")):
            shutil.rmtree(folder, ignore_errors=True)


def _prune_objects(store: ObjectStore, runs: str, kept: int) -> None:
    times: dict[str, float] = defaultdict(float)
    objects = store.find(runs)
    for o in objects:
        times[o.key.split("/")[1]] = max(times[o.key.split("/")[1]], o.modified.timestamp())
    old = [run for run in sorted(times, key=times.__getitem__, reverse=True)[kept:] if _is_past(times[run])]
    store.delete(o.key for o in objects if o.key.split("/")[1] in set(old))


def _is_past(newest: float) -> bool:
    return time.time() - newest >= _PRUNED_AFTER_S
