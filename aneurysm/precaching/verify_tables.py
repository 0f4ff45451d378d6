"""TablesCheck: manifest.csv and lesions.csv against what volumes and records give, some series at a time.

The tables are read once for where their lines are, then each line when its series is checked: what is in memory is
bounded by the series that are checked together, and by eight bytes a line.
"""

from __future__ import annotations

import csv
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from aneurysm.cache.layout import CacheLayout, subfolder_of
from aneurysm.cache.manifest import (
    LESION_COLUMNS,
    MANIFEST_COLUMNS,
    ManifestRow,
    left_seconds,
    lesion_rows,
    manifest_row,
    with_seconds,
)
from aneurysm.cache.metadata import Record, VolumeMetadata
from aneurysm.cache.table_parts import read_part
from aneurysm.csv_table import csv_line
from aneurysm.errors import CacheError
from aneurysm.processes.shared_folder import describe_denial

_RERUN: Final = "Run aneurysm precache, or aneurysm verify --fix: it writes the table again"
_INEXACT: Final = "is not what the volumes and records give"

SeriesRows = tuple[ManifestRow, list[ManifestRow]]
"""What a volume or record gives for manifest.csv, and for lesions.csv."""


@dataclass(frozen=True)
class Fault:
    """Something that is not as it should be: where, what, and what to do. ``derived``: --fix mends it."""

    where: str
    what: str
    advice: str
    derived: bool = False


@dataclass(frozen=True)
class CheckedSeries:
    """Series that are checked together: those with volumes and with records, all of the ``subfolders`` or some."""

    subfolders: Sequence[str]
    volumes: frozenset[str]
    records: frozenset[str]
    all_of_them: bool = True


def rows_of(entry: VolumeMetadata | Record, path: Path) -> SeriesRows:
    """Return the rows of manifest.csv (without seconds) and lesions.csv of the volume or record at ``path``."""
    return manifest_row(entry, path, ""), lesion_rows(entry, path.name.removesuffix(path.suffix))


def _wrong(where: str, what: str) -> Fault:
    return Fault(where, what, _RERUN, derived=True)


class _LineIndex:
    """
    Where the lines of each series are in a table.

    Raises
    ------
    CacheError
        It is missing or can't be read, or lacks a column.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, once: bool) -> None:
        self._path, self._columns = path, columns
        self._offsets: defaultdict[str, array[int]] = defaultdict(lambda: array("Q"))
        self.exact = True
        """Whether the header, the order and the last end of line are as they are written."""
        with self._open() as file:
            header = file.readline()
            self._check_header(header)
            self.exact &= header == csv_line(columns).encode()
            offset, before, line = len(header), "", header
            for line in file:
                uid = self._decoded(line).partition(",")[0]
                self.exact &= uid > before or (uid == before and not once and bool(uid))
                self._offsets[subfolder_of(uid)].append(offset)
                offset, before = offset + len(line), uid
            self.exact &= line.endswith(b"\n")

    def _open(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except FileNotFoundError as error:
            raise CacheError(f"{self._path} is missing") from error
        except OSError as error:
            raise CacheError(f"{self._path} can't be read: {describe_denial(error)}") from error

    def _check_header(self, header: bytes) -> None:
        names = self._cells(self._decoded(header))
        if missing := [column for column in self._columns if column not in names]:
            raise CacheError(f"{self._path} lacks the column(s) {', '.join(missing)}")
        self._names = names

    def _decoded(self, line: bytes) -> str:
        try:
            return line.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise CacheError(f"{self._path} can't be read: {error}") from error

    def _cells(self, line: str) -> list[str]:
        try:
            return next(csv.reader([line]), [])
        except csv.Error as error:
            raise CacheError(f"{self._path} can't be read: {error}") from error

    def lines(self, subfolder: str) -> Iterator[tuple[str, ManifestRow]]:
        """Yield each line of the series in one of the `SUBFOLDERS`, and its cells by column."""
        with self._open() as file:
            for offset in self._offsets.get(subfolder, ()):
                file.seek(offset)
                line = self._decoded(file.readline())
                yield line, dict(zip(self._names, self._cells(line), strict=False))


class TablesCheck:
    """Compares the tables with what they derive from; `end` once all series were checked."""

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        self._sound = self._complete = True
        self._indices: dict[Path, _LineIndex] = {}
        self._unreadable: list[Fault] = []
        for path, columns, once in ((layout.manifest, MANIFEST_COLUMNS, True), (layout.lesions, LESION_COLUMNS, False)):
            try:
                self._indices[path] = _LineIndex(path, columns, once=once)
            except CacheError as error:
                self._unreadable.append(_wrong(path.name, str(error).removeprefix(f"{path} ")))
        self._exact = {path: index.exact for path, index in self._indices.items()}

    def check(self, series: CheckedSeries, rows: Mapping[str, SeriesRows]) -> list[Fault]:
        """Return the faults of some series, of which ``rows`` are what can be read of their volumes and records."""
        complete = series.all_of_them and rows.keys() >= series.volumes | series.records
        faults: list[Fault] = []
        for path, find in ((self._layout.manifest, self._of_manifest), (self._layout.lesions, self._of_lesions)):
            if path in self._indices:
                try:
                    faults.extend(find(self._indices[path], series, rows, complete))
                except CacheError as error:
                    faults.append(_wrong(path.name, str(error)))
        self._complete &= complete
        self._sound &= not faults
        return faults

    def end(self, subfolders: Collection[str]) -> list[Fault]:
        """Return the faults of the tables as a whole, and of the parts of the series in ``subfolders``."""
        faults = list(self._unreadable)
        if self._sound and self._complete:
            faults += [_wrong(path.name, _INEXACT) for path, exact in self._exact.items() if not exact]
        for path in map(self._layout.table_part, subfolders):
            if path.exists() and read_part(path) is None:
                faults.append(_wrong(f"{path.parent.name}/{path.name}", "is damaged, or of another version"))
        for path in self._layout.seconds.glob("*.json"):
            try:
                left_seconds(path)
            except CacheError as error:
                faults.append(_wrong(f"{self._layout.seconds.name}/{path.name}", str(error)))
        return faults

    def _lines(self, index: _LineIndex, series: CheckedSeries) -> Iterator[tuple[str, ManifestRow]]:
        wanted = series.volumes | series.records
        for subfolder in series.subfolders:
            for line, row in index.lines(subfolder):
                if series.all_of_them or row.get("series_uid", "") in wanted:
                    yield line, row

    def _of_manifest(
        self, index: _LineIndex, series: CheckedSeries, rows: Mapping[str, SeriesRows], _complete: bool
    ) -> Iterator[Fault]:
        volumes, records, seen = series.volumes, series.records, set()
        for line, row in self._lines(index, series):
            uid, status = row.get("series_uid", ""), row.get("status", "")
            seen.add(uid)
            if status == "cached" and uid not in volumes:
                yield Fault(
                    uid, "the manifest says cached, but there is no volume", "Run aneurysm precache: it builds it"
                )
            elif status != "cached" and uid in volumes:
                yield _wrong(uid, f"the manifest says {status}, but there is a volume")
            elif status != "cached" and uid not in records:
                yield _wrong(uid, f"the manifest says {status}, but there is no record of it")
            elif uid in rows:
                timed = with_seconds(rows[uid][0], row.get("seconds", ""))
                expected = csv_line([timed[c] for c in MANIFEST_COLUMNS]).removesuffix("\n")
                # Read back as text: some cells are escaped.
                cells = dict(zip(MANIFEST_COLUMNS, next(csv.reader([expected])), strict=True))
                if differing := [k for k, v in cells.items() if row.get(k, "") != v]:
                    kind = "volume" if uid in volumes else "record"
                    yield _wrong(uid, f"the manifest and the {kind} differ in {', '.join(differing)}")
                self._exact[self._layout.manifest] &= line == expected
        for uid in sorted(volumes - seen):
            yield _wrong(uid, "there is a volume, but no row in the manifest")
        for uid in sorted(records - seen - volumes):
            yield _wrong(uid, "there is a record of why it is not cached, but no row in the manifest")

    def _of_lesions(
        self, index: _LineIndex, series: CheckedSeries, rows: Mapping[str, SeriesRows], complete: bool
    ) -> Iterator[Fault]:
        found: defaultdict[str, list[tuple[str, list[str]]]] = defaultdict(list)
        for line, row in self._lines(index, series):
            found[row.get("series_uid", "")].append((line, [row.get(c, "") for c in LESION_COLUMNS]))
        given = {uid: [csv_line([r[c] for c in LESION_COLUMNS]) for r in lesions] for uid, (_, lesions) in rows.items()}
        expected = {uid: [line.removesuffix("\n") for line in lines] for uid, lines in given.items()}
        strange = found.keys() - expected.keys() - (set() if complete else series.volumes | series.records)
        for uid in sorted(strange | expected.keys()):
            lines = expected.get(uid, [])
            ours = found.get(uid, [])
            if [cells for _, cells in ours] != [next(csv.reader([line])) for line in lines]:
                name = self._layout.lesions.name
                yield _wrong(uid, f"{name} has {len(ours)} rows of it, which are not the {len(lines)} of the cache")
            self._exact[self._layout.lesions] &= [line for line, _ in ours] == lines
