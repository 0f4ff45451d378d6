"""train.csv and train_localizers.csv -> labels, modality and localizer rows by series."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from aneurysm.csv_table import TableRow, read_csv_rows
from aneurysm.errors import DataError
from aneurysm.labels import LABELS, MODALITIES, SITES

TRAIN_CSV: Final = "train.csv"
LOCALIZERS_CSV: Final = "train_localizers.csv"
_UID_COLUMN: Final = "SeriesInstanceUID"
_MODALITY_BY_CASE: Final = {name.casefold(): name for name in MODALITIES}
_SITE_BY_CASE: Final = {name.casefold(): name for name in SITES}
_NUMPY_CALL: Final = re.compile(r"\b(?:np|numpy)\.\w+\(([^()]*)\)")
_MAX_BYTES: Final = 2**31
"""Of a table: ten million series take 1.2 GB, and a row is read at a time."""
_MAX_COORDINATES: Final = 1000
"""Characters: `ast.literal_eval` of a long nested text takes gigabytes."""


@dataclass(frozen=True, slots=True)
class Localizer:
    """
    One row of train_localizers.csv: a point in the stored frame of an image.

    ``row`` is its first line in the file, from 1. ``x`` is the column and ``y`` the row in pixels, whole numbers being
    pixel centres; ``frame`` counts from 0 in a multi-frame file and is None otherwise. ``problem`` says why the row has
    no usable point.
    """

    row: int
    series_uid: str
    sop_uid: str
    location: str
    x: float = math.nan
    y: float = math.nan
    frame: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SeriesNotes:
    """
    What the tables say of one series; ``labels`` is None where train.csv has no row for it.

    Series of which they say the same may share it: nobody changes ``labels``.
    """

    modality: str = ""
    labels: dict[str, int] | None = None
    localizers: tuple[Localizer, ...] = ()


_NOTHING: Final = SeriesNotes()


class Tables:
    """
    Both tables, by series UID; ``has_labels`` and ``has_localizers`` say which of the two there are.

    Series that have the same labels share their notes, and localizers are kept as text: of ten million series, of
    which every second one has some, that takes 2 GB instead of 10.
    """

    def __init__(
        self, notes: dict[str, SeriesNotes], packed: dict[str, str], *, has_labels: bool, has_localizers: bool
    ) -> None:
        self._notes, self._packed = notes, packed
        self.has_labels, self.has_localizers = has_labels, has_localizers

    def __iter__(self) -> Iterator[str]:
        yield from self._notes
        yield from (uid for uid in self._packed if uid not in self._notes)

    def __contains__(self, uid: object) -> bool:
        return uid in self._notes or uid in self._packed

    def of(self, uid: str) -> SeriesNotes:
        """Return the notes of a series, empty ones if there are none."""
        notes = self._notes.get(uid, _NOTHING)
        if (packed := self._packed.get(uid)) is None:
            return notes
        rows = json.loads(f"[{packed}]")
        return replace(notes, localizers=tuple(_unpacked(uid, *row) for row in rows))


def _packed(row: Localizer) -> str:
    site = SITES.index(row.location) if row.location in SITES else row.location
    rare = [row.frame, row.problem] if row.problem or row.frame is not None else []
    return json.dumps([row.row, row.sop_uid, site, row.x, row.y, *rare], separators=(",", ":"))


def _unpacked(uid: str, row: int, sop: str, site: int | str, *others: Any) -> Localizer:
    return Localizer(row, uid, sop, SITES[site] if isinstance(site, int) else site, *others)


def read_tables(root: Path) -> Tables:
    """
    Read the tables under ``root``; absent ones are empty.

    Raises
    ------
    DataError
        A table can't be read, lacks a column, gives one series different labels, or has a label that is not 0 or 1.
    """
    train, localizers = root / TRAIN_CSV, root / LOCALIZERS_CSV
    return Tables(
        read_labels(train),
        _packed_localizers(localizers),
        has_labels=train.is_file(),
        has_localizers=localizers.is_file(),
    )


def read_series_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, TableRow]]:
    """
    Yield the rows of a table, each with its SeriesInstanceUID; none where there is no file.

    Raises
    ------
    DataError
        It can't be read, lacks one of ``columns``, or a row has no UID.
    """
    if not path.is_file():
        return
    try:
        for row in read_csv_rows(path, [_UID_COLUMN, *columns], max_bytes=_MAX_BYTES):
            if not row[_UID_COLUMN]:
                raise DataError(f"{path} line {row.line}: {_UID_COLUMN} is empty")
            # One string for a UID, wherever it is read: another one for each of ten million would take a gigabyte.
            yield sys.intern(row[_UID_COLUMN]), row
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error


def read_labels(path: Path) -> dict[str, SeriesNotes]:
    """Return labels and modality by series UID of a table as train.csv. Raises `DataError`; see `read_tables`."""
    columns = ["Modality", *LABELS]
    notes: dict[str, SeriesNotes] = {}
    shared: dict[tuple[str, ...], SeriesNotes] = {}
    for uid, row in read_series_rows(path, columns):
        cells = tuple(row[name] for name in columns)
        if (own := shared.get(cells)) is None:
            own = shared[cells] = _notes(path, row)
        if notes.setdefault(uid, own) != own:
            first = next(other.line for name, other in read_series_rows(path, columns) if name == uid)
            raise DataError(
                f"{path} lines {first} and {row.line} name series {uid} with different labels or modalities"
            )
    return notes


def _notes(path: Path, row: TableRow) -> SeriesNotes:
    labels = {label: _label(path, row, label) for label in LABELS}
    kind = _MODALITY_BY_CASE.get(row["Modality"].casefold())
    if kind is None:
        known = ", ".join(MODALITIES)
        raise DataError(f"{path} line {row.line}: unknown Modality {row['Modality'][:40]!r}; known are {known}")
    return SeriesNotes(kind, labels)


def _label(path: Path, row: TableRow, label: str) -> int:
    text = row[label]
    # A spreadsheet turns 1 into 1.0, or 1,0, when a cell of the column is empty; pandas writes bools as words.
    try:
        value = {"true": 1.0, "false": 0.0}.get(text.casefold())
        value = float(text.replace(",", ".")) if value is None else value
    except ValueError:
        value = math.nan
    if value not in (0.0, 1.0):
        raise DataError(f"{path} line {row.line}, column {label}: {text[:40]!r} is neither 0 nor 1")
    return int(value)


def _packed_localizers(path: Path) -> dict[str, str]:
    packed: dict[str, str] = {}
    for uid, row in read_series_rows(path, ["SOPInstanceUID", "coordinates", "location"]):
        text = _packed(_localizer(uid, row))
        packed[uid] = f"{packed[uid]},{text}" if uid in packed else text
    return packed


def _localizer(uid: str, row: TableRow) -> Localizer:
    sop, coordinates = row["SOPInstanceUID"], row["coordinates"]
    location = _SITE_BY_CASE.get(row["location"].casefold(), row["location"])

    def unusable(problem: str) -> Localizer:
        return Localizer(row.line, uid, sop, location, problem=problem)

    # A Python dict as text, with single quotes: JSON can't read it, and eval would run whatever stands there. numpy 2
    # writes its numbers as calls.
    plain = _NUMPY_CALL.sub(r"\1", coordinates)
    try:
        if len(plain) > _MAX_COORDINATES:
            raise ValueError("too long")
        point = ast.literal_eval(plain)
        x, y = float(point["x"]), float(point["y"])
        frame = None if point.get("f") is None else float(point["f"])
    except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, MemoryError):
        return unusable(f"coordinates {coordinates[:60]!r} are not {{'x': ..., 'y': ...}}")
    if not (math.isfinite(x) and math.isfinite(y)):
        return unusable(f"coordinates {coordinates[:60]!r} are not finite")
    if frame is not None and not frame.is_integer():
        return unusable(f"coordinates {coordinates[:60]!r}: f is no number of a frame")
    if location not in SITES:
        return unusable(f"{location[:60]!r} is none of the 13 sites")
    return Localizer(row.line, uid, sop, location, x, y, None if frame is None else int(frame))
