"""LedgerFiles: the ledgers of one run, in a folder or a store, read from where the last reading ended.

Whoever may write to a cache may write anything into a ledger: lines that are too long, or no entries, are counted and
passed over, and names have no characters but those of ours.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from aneurysm.cache.folder import read_spec
from aneurysm.cache.layout import CacheLayout
from aneurysm.documents import parse_json
from aneurysm.errors import CacheNotFoundError, RunNotFoundError
from aneurysm.precaching.ledger import ENDING
from aneurysm.precaching.run_id import checked_run_id
from aneurysm.processes.locks import is_locked
from aneurysm.remote.client import ObjectStore
from aneurysm.remote.url import is_url

_LONGEST_LINE: Final = 4096
_MOST_AT_ONCE: Final = 2**20
_MOST_OF_A_PART: Final = 64 * 2**20
_LARGEST: Final = 1e15
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,/+-]{0,127}")
_PART: Final = re.compile(r"\.\d{4,9}$")
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a ledger; ``writer`` is the name of the file, and ``values`` are what stands in it."""

    writer: str
    event: str
    time: float
    values: dict[str, Any]

    def number(self, key: str) -> float:
        """Return a number of at least 0; 0 where there is none."""
        value = self.values.get(key, 0)
        return value if type(value) in (int, float) and 0 <= value < _LARGEST else 0

    def count(self, key: str) -> int:
        """Return a whole number of at least 0; 0 where there is none."""
        return int(self.number(key))

    def name(self, key: str) -> str:
        """Return a name; "" where there is none, or where it has characters that no name of ours has."""
        value = self.values.get(key, "")
        return value if isinstance(value, str) and _NAME.fullmatch(value) else ""


def parse_entry(writer: str, line: bytes) -> Entry | None:
    """Return the entry in a line; None if it is none."""
    if len(line) > _LONGEST_LINE:
        return None
    try:
        values = parse_json(line)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    event, time = values.get("event"), values.get("time")
    if not isinstance(event, str) or not _NAME.fullmatch(event) or isinstance(time, bool):
        return None
    if not isinstance(time, int | float) or not 0 < time < _LARGEST:
        return None
    return Entry(writer, event, time, values)


class LedgerFiles(Protocol):
    """The ledgers of one run."""

    run: str
    damaged: int
    """Lines so far that are no entries."""

    def read(self) -> Iterator[Entry]:
        """Yield the entries since the last reading; those of each file in order."""

    def is_held(self, writer: str) -> bool:
        """Return True if a process holds the lock on a file; False if none does, or none that can be seen here."""


def runs_of(cache: str | Path) -> list[str]:
    """Return the runs of a cache that left a ledger, the newest first."""
    times = _remote_runs(ObjectStore(str(cache))) if is_url(cache) else _local_runs(CacheLayout(Path(cache)))
    return sorted(times, key=lambda run: (times[run], run), reverse=True)


def open_ledgers(cache: str | Path, run: str | None = None) -> LedgerFiles:
    """
    Return the ledgers of a run of ``cache``, a folder or a URL; of the newest one unless it is named.

    Raises
    ------
    CacheNotFoundError
        There is no cache.
    RunNotFoundError
        There is no such run.
    """
    if run is not None:
        checked_run_id(run, "--run")
    if is_url(cache):
        store = ObjectStore(str(cache))
        if not store.exists(CacheLayout(Path()).spec.name):
            raise CacheNotFoundError(f"there is no cache at {store.url}: it has no spec.toml")
        return _RemoteLedgers(store, _chosen(run, _remote_runs(store), store.url))
    layout = CacheLayout(Path(cache).absolute())
    read_spec(layout)
    return _LocalLedgers(layout, _chosen(run, _local_runs(layout), str(cache)))


def _chosen(run: str | None, times: dict[str, float], cache: str) -> str:
    newest = sorted(times, key=times.__getitem__, reverse=True)
    if not newest:
        raise RunNotFoundError(f"no run has left a ledger in {cache}: `aneurysm precache` does so once it has begun")
    if run is not None and run not in times:
        more = f" and {len(newest) - _SHOWN} more" if len(newest) > _SHOWN else ""
        raise RunNotFoundError(f"{cache} has no ledger of a run {run}; it has of {', '.join(newest[:_SHOWN])}{more}")
    return run or newest[0]


def _local_runs(layout: CacheLayout) -> dict[str, float]:
    """Return when each run last got a new ledger."""
    times = {}
    for folder in layout.runs.iterdir() if layout.runs.is_dir() else ():
        if folder.is_dir() and any(folder.glob(f"*{ENDING}")):
            times[folder.name] = folder.stat().st_mtime
    return times


def _remote_runs(store: ObjectStore) -> dict[str, float]:
    times: dict[str, float] = defaultdict(float)
    for o in store.find(CacheLayout(Path()).runs.name):
        if o.key.endswith(ENDING) and o.key.count("/") == 2:
            run = o.key.split("/")[1]
            times[run] = max(times[run], o.modified.timestamp())
    return times


class _LocalLedgers:
    def __init__(self, layout: CacheLayout, run: str) -> None:
        self.run, self.damaged = run, 0
        self._folder = layout.runs / run
        self._offsets: dict[str, int] = {}

    def read(self) -> Iterator[Entry]:
        """See `LedgerFiles.read`."""
        with os.scandir(self._folder) as entries:
            # No links, nor pipes: nobody of us made them.
            sizes = {
                e.name: e.stat().st_size
                for e in entries
                if e.name.endswith(ENDING) and e.is_file(follow_symlinks=False)
            }
        for name in sorted(sizes):
            if sizes[name] > self._offsets.get(name, 0):
                yield from self._read_file(name)

    def _read_file(self, name: str) -> Iterator[Entry]:
        writer = name.removesuffix(ENDING)
        with (self._folder / name).open("rb") as file:
            file.seek(self._offsets.get(name, 0))
            while chunk := file.read(_MOST_AT_ONCE):
                end = chunk.rfind(b"\n") + 1
                if not end and len(chunk) <= _LONGEST_LINE:
                    break  # the line is being written, or its process died over it
                self.damaged += not end
                used = end or len(chunk)
                for line in chunk[:end].splitlines():
                    if (entry := parse_entry(writer, line)) is None:
                        self.damaged += 1
                    else:
                        yield entry
                self._offsets[name] = self._offsets.get(name, 0) + used
                file.seek(self._offsets[name])

    def is_held(self, writer: str) -> bool:
        """See `LedgerFiles.is_held`."""
        return is_locked(self._folder / f"{writer}{ENDING}")


class _RemoteLedgers:
    def __init__(self, store: ObjectStore, run: str) -> None:
        self.run, self.damaged = run, 0
        self._store = store
        self._read: dict[str, tuple[str, int]] = {}
        """ETags of the parts, and how many of their bytes were read."""

    def read(self) -> Iterator[Entry]:
        """See `LedgerFiles.read`."""
        for o in self._store.find(f"{CacheLayout(Path()).runs.name}/{self.run}"):
            e_tag, used = self._read.get(o.key, ("", 0))
            if not o.key.endswith(ENDING) or o.e_tag == e_tag:
                continue
            if o.size > _MOST_OF_A_PART:
                self.damaged += 1
                self._read[o.key] = (o.e_tag, used)
                continue
            try:
                content = self._store.read(o.key)
            except FileNotFoundError:
                continue  # pruned just now
            writer = _PART.sub("", o.key.rsplit("/", 1)[-1].removesuffix(ENDING))
            for line in content[used:].splitlines():
                if (entry := parse_entry(writer, line)) is None:
                    self.damaged += 1
                else:
                    yield entry
            self._read[o.key] = (o.e_tag, len(content))

    def is_held(self, writer: str) -> bool:  # noqa: ARG002 - a store has no locks
        """See `LedgerFiles.is_held`."""
        return False
