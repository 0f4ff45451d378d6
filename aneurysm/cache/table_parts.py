"""Parts of the tables: of each of the `SUBFOLDERS` the rows that its volumes and records gave when they were last read.

CACHE/
  .tables/<hh>.jsonl    a header; an entry for each series, by rising UID; a checksum of all before it

An entry holds a stamp of the file that it was read from (`Stamps`). A rerun reads the files again whose stamps differ,
and takes the rows of all others from the part. Parts are derived, and may be removed at any time: what was in them is
read from the volumes again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.manifest import LESION_COLUMNS, MANIFEST_COLUMNS
from aneurysm.documents import parse_json, read_bounded
from aneurysm.processes.files import write_atomically
from aneurysm.processes.shared_folder import make_folder

_MOST_PART: Final = 2**30
"""Bytes: of ten million series a part has 30 MB."""
_GRANULARITY_NS: Final = 2_000_000_000
"""The coarsest clock of a file system that still keeps caches: that of FAT."""
_HEADER: Final = {"format": 1, "manifest": list(MANIFEST_COLUMNS), "lesions": list(LESION_COLUMNS)}


class Entry(NamedTuple):
    """Rows of one series, in the order of the tables' columns; an empty stamp is that of no file."""

    stamp: str
    cells: list[str]
    lesions: list[list[str]]

    @property
    def uid(self) -> str:
        """The series."""
        return self.cells[0]


class Stamps(Protocol):
    """What tells without reading them whether files are still those that they were."""

    def of_volume(self, uid: str) -> str:
        """Return the stamp of a volume's zarr.json; empty if there is none, or if it may still change unnoticed."""

    def of_record(self, uid: str) -> str:
        """Return likewise the stamp of a record."""

    def fetch(self, uids: Sequence[str]) -> None:
        """Make sure that the metadata of these volumes can be read in the cache's folder."""


class FileStamps:
    """
    Stamps of a cache in a folder: times, size and inode, which a file of other content has not.

    Its times tell nothing of a file that was changed so lately that the clock may not have moved on since: it has no
    stamp, and is read again the next time (git's index has the same care for "racy" files). It is the file system's own
    clock that counts, for those of nodes and servers differ.
    """

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        clock = layout.tables / f".clock.{secrets.token_hex(4)}.tmp"  # swept, if this process is killed
        make_folder(layout.tables)
        clock.touch()
        self._settled_ns = clock.stat().st_mtime_ns - _GRANULARITY_NS
        clock.unlink()

    def of_volume(self, uid: str) -> str:
        """See `Stamps.of_volume`."""
        return self._of(self._layout.volume(uid) / "zarr.json")

    def of_record(self, uid: str) -> str:
        """See `Stamps.of_record`."""
        return self._of(self._layout.record(uid))

    def fetch(self, uids: Sequence[str]) -> None:
        """Do nothing: all is there."""

    def _of(self, path: Path) -> str:
        try:
            status = path.stat()
        except OSError:
            return ""
        if max(status.st_mtime_ns, status.st_ctime_ns) > self._settled_ns:
            return ""
        return f"{status.st_mtime_ns:x}.{status.st_ctime_ns:x}.{status.st_size:x}.{status.st_ino:x}"


def read_part(path: Path) -> dict[str, Entry] | None:
    """Return the entries of a part, by UID; None if there is none, or it is damaged or of another version."""
    try:
        content = read_bounded(path, _MOST_PART)
        body, _, trailer = content.removesuffix(b"\n").rpartition(b"\n")
        if parse_json(trailer) != _checksum(body + b"\n"):
            return None
        header, *lines = body.split(b"\n")
        if parse_json(header) != _HEADER:
            return None
        return {entry.uid: entry for entry in map(_parse_entry, lines)}
    except (OSError, ValueError):
        return None


def write_part(path: Path, entries: Iterable[Entry]) -> None:
    """Write the entries of a part, in order of their UIDs."""
    lines = [_line(_HEADER), *map(_line, entries)]
    body = b"".join(lines)
    # A part that a power failure damages is derived again, and 256 flushes take seconds.
    write_atomically(path, body + _line(_checksum(body)), lasting=False)


def iter_part(path: Path) -> Iterator[Entry]:
    """
    Yield the entries of a part, which was read or written before, one at a time.

    Raises
    ------
    ValueError
        It is damaged.
    OSError
        It can't be read.
    """
    with path.open("rb") as file:
        next(file, b"")
        for line in file:
            if line.startswith(b"["):
                yield _parse_entry(line)


def _parse_entry(line: bytes) -> Entry:
    content = parse_json(line)
    if not (isinstance(content, list) and len(content) == len(Entry._fields)):
        raise ValueError("it is no entry")
    entry = Entry(*content)
    if not (isinstance(entry.stamp, str) and _is_row(entry.cells, MANIFEST_COLUMNS)):
        raise ValueError("it is no row of the manifest")
    if not (isinstance(entry.lesions, list) and all(_is_row(row, LESION_COLUMNS) for row in entry.lesions)):
        raise ValueError("these are no rows of lesions")
    return entry


def _is_row(cells: Any, columns: Sequence[str]) -> bool:
    return isinstance(cells, list) and len(cells) == len(columns) and all(isinstance(cell, str) for cell in cells)


def _checksum(body: bytes) -> Mapping[str, str]:
    return {"sha256": hashlib.sha256(body).hexdigest()}


def _line(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
