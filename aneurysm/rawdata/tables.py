"""train.csv and train_localizers.csv -> labels, modality and localizer rows by series."""

from __future__ import annotations

import ast
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aneurysm.csv_table import TableRow, read_csv_rows
from aneurysm.errors import DataError
from aneurysm.labels import LABELS, MODALITIES, SITES

TRAIN_CSV: Final = "train.csv"
LOCALIZERS_CSV: Final = "train_localizers.csv"
_UID_COLUMN: Final = "SeriesInstanceUID"
_MODALITY_BY_CASE: Final = {name.casefold(): name for name in MODALITIES}
_SITE_BY_CASE: Final = {name.casefold(): name for name in SITES}
_NUMPY_CALL: Final = re.compile(r"\b(?:np|numpy)\.\w+\(([^()]*)\)")
_MAX_COORDINATES: Final = 1000
"""Characters: `ast.literal_eval` of a long nested text takes gigabytes."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class SeriesNotes:
    """What the tables say of one series; ``labels`` is None where train.csv has no row for it."""

    modality: str = ""
    labels: dict[str, int] | None = None
    localizers: tuple[Localizer, ...] = ()


@dataclass(frozen=True)
class Tables:
    """Both tables, by series UID; ``has_labels`` and ``has_localizers`` say which of the two there are."""

    notes: dict[str, SeriesNotes] = field(default_factory=dict)
    has_labels: bool = False
    has_localizers: bool = False

    def of(self, uid: str) -> SeriesNotes:
        """Return the notes of a series, empty ones if there are none."""
        return self.notes.get(uid, SeriesNotes())


def read_tables(root: Path) -> Tables:
    """
    Read the tables under ``root``; absent ones are empty.

    Raises
    ------
    DataError
        A table can't be read, lacks a column, gives one series different labels, or has a label that is not 0 or 1.
    """
    labels, modality = read_labels(root / TRAIN_CSV)
    localizers = _localizers(root / LOCALIZERS_CSV)
    uids = labels.keys() | localizers.keys()
    return Tables(
        {u: SeriesNotes(modality.get(u, ""), labels.get(u), tuple(localizers.get(u, ()))) for u in sorted(uids)},
        has_labels=(root / TRAIN_CSV).is_file(),
        has_localizers=(root / LOCALIZERS_CSV).is_file(),
    )


def read_series_rows(path: Path, columns: Sequence[str] = ()) -> list[tuple[str, TableRow]]:
    """
    Return the rows of a table, each with its SeriesInstanceUID; none where there is no file.

    Raises
    ------
    DataError
        It can't be read, lacks one of ``columns``, or a row has no UID.
    """
    if not path.is_file():
        return []
    try:
        rows = read_csv_rows(path, [_UID_COLUMN, *columns])
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    if empty := [row.line for row in rows if not row[_UID_COLUMN]]:
        raise DataError(f"{path} line {empty[0]}: {_UID_COLUMN} is empty")
    return [(row[_UID_COLUMN], row) for row in rows]


def read_labels(path: Path) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Return labels and modality by series UID of a table as train.csv. Raises `DataError`; see `read_tables`."""
    labels: dict[str, dict[str, int]] = {}
    modality: dict[str, str] = {}
    lines: dict[str, int] = {}
    for uid, row in read_series_rows(path, ["Modality", *LABELS]):
        values = {label: _label(path, row, label) for label in LABELS}
        kind = _MODALITY_BY_CASE.get(row["Modality"].casefold())
        if kind is None:
            known = ", ".join(MODALITIES)
            raise DataError(f"{path} line {row.line}: unknown Modality {row['Modality'][:40]!r}; known are {known}")
        if uid in labels and (labels[uid], modality[uid]) != (values, kind):
            raise DataError(
                f"{path} lines {lines[uid]} and {row.line} name series {uid} with different labels or modalities"
            )
        labels[uid], modality[uid], lines[uid] = values, kind, row.line
    return labels, modality


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


def _localizers(path: Path) -> dict[str, list[Localizer]]:
    by_series: dict[str, list[Localizer]] = defaultdict(list)
    for uid, row in read_series_rows(path, ["SOPInstanceUID", "coordinates", "location"]):
        by_series[uid].append(_localizer(row))
    return by_series


def _localizer(row: TableRow) -> Localizer:
    uid, sop, coordinates = row[_UID_COLUMN], row["SOPInstanceUID"], row["coordinates"]
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
