"""Volumes and records -> manifest.csv and lesions.csv, both derived: every run writes them again.

What is in memory is bounded by one of the `SUBFOLDERS`: parts (table_parts.py) are brought up to date one after the
other, then merged, a row at a time.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aneurysm.cache.folder import series_in_subfolder, subfolders_in
from aneurysm.cache.layout import IMAGE, RECORD_ENDING, SUBFOLDERS, VOLUME_ENDING, CacheLayout
from aneurysm.cache.manifest import (
    LESION_COLUMNS,
    MANIFEST_COLUMNS,
    ManifestRow,
    iter_manifest,
    known_seconds,
    left_seconds,
    lesion_rows,
    manifest_row,
    with_seconds,
)
from aneurysm.cache.metadata import read_document, read_record
from aneurysm.cache.table_parts import Entry, FileStamps, Stamps, iter_part, read_part, write_part
from aneurysm.csv_table import csv_line
from aneurysm.errors import CacheError
from aneurysm.processes.files import TRIES, replaced_file, sweep_temporaries
from aneurysm.processes.locks import one_at_a_time
from aneurysm.processes.threads import map_io

_STATUS: Final = MANIFEST_COLUMNS.index("status")


@dataclass(frozen=True)
class TableCounts:
    """Rows of the manifest of series that are cached, and of those that are not."""

    cached: int
    not_cached: int


def write_tables(
    layout: CacheLayout,
    seconds: Mapping[str, float] | None = None,
    *,
    stamps: Stamps | None = None,
    afresh: bool = False,
    on_row: Callable[[ManifestRow], object] | None = None,
) -> TableCounts:
    """
    Derive manifest.csv and lesions.csv from what is on disk.

    A volume counts before a record. One that can't be read, or has vanished meanwhile, has no row: `aneurysm verify`
    speaks of it.

    Parameters
    ----------
    seconds
        How long series of this run took; for others it is taken over from what `leave_seconds` left and from the tables
        before, the one thing that stands nowhere else.
    stamps
        What tells whether a volume or record is the one that was read before; None: its file does.
    afresh
        Read all volumes and records again.
    on_row
        Is called with each row of the manifest.
    """
    # Of two that look at the disk and write at the same time, the one that looked first might write last.
    with one_at_a_time(layout.spec):
        sweep_temporaries(layout.tables)
        stamps = FileStamps(layout) if stamps is None else stamps
        left = sorted(layout.seconds.glob("*.json"))
        known = _Seconds(layout, seconds or {}, left)
        for name in subfolders_in(layout.volumes, layout.rejected, layout.tables):
            _update_part(layout, name, stamps, known, afresh)
        counts = merge_parts(layout, on_row)
        for path in left:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # absent, or another task has just left something
            layout.seconds.rmdir()
    return counts


class _Seconds:
    """How long series took: as this run says, else what tasks left, else the manifest as it was."""

    def __init__(self, layout: CacheLayout, ours: Mapping[str, float], left: list[Path]) -> None:
        self._manifest = layout.manifest
        self.new: Final = {uid: f"{s:.3f}" for uid, s in ours.items()}
        for path in left:
            with suppress(CacheError):  # only how long something took
                for uid, taken in left_seconds(path).items():
                    self.new.setdefault(uid, taken)
        self._old: dict[str, str] | None = None

    def of(self, uid: str, before: Entry | None, *, lost: bool) -> str:
        """
        Return how long a series took; empty if that is not known.

        ``before`` is the entry of its part. If that may be ``lost``, the manifest is read as well.
        """
        old = self._of_manifest(uid) if lost and uid not in self.new else ""
        return self.new.get(uid) or old or (_seconds_of(before) if before else "")

    def _of_manifest(self, uid: str) -> str:
        if self._old is None:
            self._old = {}
            with suppress(CacheError):  # the first run, or a damaged one that is being replaced
                self._old = {row["series_uid"]: s for row in iter_manifest(self._manifest) if (s := known_seconds(row))}
        return self._old.get(uid, "")


def _seconds_of(entry: Entry) -> str:
    return known_seconds(dict(zip(MANIFEST_COLUMNS, entry.cells, strict=True)))


def _update_part(layout: CacheLayout, name: str, stamps: Stamps, seconds: _Seconds, afresh: bool) -> None:
    """Bring the part of one of the `SUBFOLDERS` up to what is in it."""
    path = layout.table_part(name)
    part = read_part(path)
    before = {} if part is None or afresh else part
    volumes = set(series_in_subfolder(layout.volumes / name, VOLUME_ENDING))
    uids = sorted(volumes.union(series_in_subfolder(layout.rejected / name, RECORD_ENDING)))

    def stamp_of(uid: str) -> str:
        return stamps.of_volume(uid) if uid in volumes else stamps.of_record(uid)

    current = dict(zip(uids, map_io(uids, stamp_of), strict=True))
    changed = [uid for uid in uids if not (current[uid] and uid in before and before[uid].stamp == current[uid])]
    stamps.fetch([uid for uid in changed if uid in volumes])

    def read(uid: str) -> Entry | None:
        taken = seconds.of(uid, None if part is None else part.get(uid), lost=part is None or afresh)
        return _read_entry(layout, uid, taken, current[uid], stamp_of)

    entries = {uid: before[uid] for uid in uids if uid in before}
    for uid in entries.keys() & seconds.new.keys():
        entries[uid] = _with_seconds(entries[uid], seconds.new[uid])
    for uid, entry in zip(changed, map_io(changed, read), strict=True):
        entries.pop(uid, None)
        if entry is not None:
            entries[uid] = entry
    if part is None and not entries:
        path.unlink(missing_ok=True)
    elif entries != part:
        write_part(path, (entries[uid] for uid in sorted(entries)))


def _read_entry(
    layout: CacheLayout, uid: str, seconds: str, stamp: str, stamp_of: Callable[[str], str]
) -> Entry | None:
    """Return what a series gives; None if neither its volume nor its record can be read."""
    path, record = layout.volume(uid), layout.record(uid)
    with suppress(CacheError, OSError):
        names = set(os.listdir(path))  # noqa: PTH208 - names alone
        own = read_document(path).own
        rows = manifest_row(own, path, seconds), lesion_rows(own, uid)
        # While labels are replaced, two count as bytes of the volume, and zarr.json is no other when the first go.
        known = {"zarr.json", IMAGE, own.labels_tree}
        settled = set(os.listdir(path)) == names <= known and stamp_of(uid) == stamp  # noqa: PTH208
        return _entry(stamp if settled else "", *rows)
    with suppress(CacheError, OSError):
        content = read_record(record)
        # Of a series with a volume the record counts only as long as that can't be read.
        settled = not path.exists() and stamp_of(uid) == stamp
        return _entry(stamp if settled else "", manifest_row(content, record, seconds), lesion_rows(content, uid))
    return None


def _entry(stamp: str, row: ManifestRow, lesions: list[ManifestRow]) -> Entry:
    return Entry(stamp, [row[c] for c in MANIFEST_COLUMNS], [[lesion[c] for c in LESION_COLUMNS] for lesion in lesions])


def _with_seconds(entry: Entry, seconds: str) -> Entry:
    row = with_seconds(dict(zip(MANIFEST_COLUMNS, entry.cells, strict=True)), seconds)
    return entry._replace(cells=[row[c] for c in MANIFEST_COLUMNS])


def merge_parts(layout: CacheLayout, on_row: Callable[[ManifestRow], object] | None = None) -> TableCounts:
    """Write both tables from the parts as they are; see `write_tables`."""
    for _ in range(TRIES - 1):
        with suppress(FileNotFoundError):  # where there are no locks, another run's sweep may have taken one
            return _merge_once(layout, on_row)
    return _merge_once(layout, on_row)


def _merge_once(layout: CacheLayout, on_row: Callable[[ManifestRow], object] | None) -> TableCounts:
    paths = [path for path in map(layout.table_part, SUBFOLDERS) if path.exists()]
    cached = rows = 0
    with ExitStack() as files:
        # In this order: whoever reads between the two finds at least the lesions that the manifest counts.
        # Where no other run's sweep of the cache looks: the larger it is the longer they take to write.
        manifest, lesions = (
            files.enter_context(replaced_file(path, beside=layout.tables / path.name))
            for path in (layout.manifest, layout.lesions)
        )
        manifest.write(csv_line(MANIFEST_COLUMNS).encode())
        lesions.write(csv_line(LESION_COLUMNS).encode())
        try:
            for entry in heapq.merge(*map(iter_part, paths), key=lambda e: e.uid):
                manifest.write(csv_line(entry.cells).encode())
                lesions.writelines(csv_line(cells).encode() for cells in entry.lesions)
                rows += 1
                cached += entry.cells[_STATUS] == "cached"
                if on_row is not None:
                    on_row(dict(zip(MANIFEST_COLUMNS, entry.cells, strict=True)))
        except ValueError as error:
            raise CacheError(f"{layout.tables} was changed or damaged while it was read: {error}") from error
    return TableCounts(cached, rows - cached)
