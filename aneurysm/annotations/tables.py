"""train.csv and train_localizers.csv -> labels, modality and localizer rows by series."""

from __future__ import annotations

import ast
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pandas as pd

from aneurysm.errors import DataError
from aneurysm.labels import LABELS, MODALITIES, SITES

TRAIN_CSV: Final = "train.csv"
LOCALIZERS_CSV: Final = "train_localizers.csv"
_UID_COLUMN: Final = "SeriesInstanceUID"


@dataclass(frozen=True)
class Localizer:
    """
    One row of train_localizers.csv: a point in the stored frame of an image.

    ``x`` is the column and ``y`` the row in pixels, whole numbers being pixel centres; ``frame`` counts from 0 in a
    multi-frame file and is None otherwise. ``problem`` says why the row has no usable point.
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
    """Both tables, by series UID."""

    notes: dict[str, SeriesNotes] = field(default_factory=dict)

    def of(self, uid: str) -> SeriesNotes:
        """Return the notes of a series, empty ones if there are none."""
        return self.notes.get(uid, SeriesNotes())


def read_tables(root: Path) -> Tables:
    """
    Read the tables under ``root``; absent ones are empty.

    Raises
    ------
    DataError
        A table can't be read, lacks a column, names a series twice, or has a label that is not 0 or 1.
    """
    labels, modality = _train(root / TRAIN_CSV)
    localizers = _localizers(root / LOCALIZERS_CSV)
    uids = labels.keys() | localizers.keys()
    return Tables(
        {u: SeriesNotes(modality.get(u, ""), labels.get(u), tuple(localizers.get(u, ()))) for u in sorted(uids)}
    )


def _read_csv(path: Path, columns: list[str]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} can't be read as CSV: {error}") from error
    if missing := [c for c in columns if c not in table.columns]:
        raise DataError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(table.columns)}")
    return table


def _train(path: Path) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    table = _read_csv(path, [_UID_COLUMN, "Modality", *LABELS])
    if table is None:
        return {}, {}
    twice = table[_UID_COLUMN][table[_UID_COLUMN].duplicated()]
    if len(twice):
        raise DataError(f"{path} names {len(twice)} series twice, the first: {twice.iloc[0]}")
    for label in LABELS:
        # A spreadsheet turns 1 into 1.0 when a cell of the column is empty.
        table[label] = table[label].str.strip().str.removesuffix(".0")
        wrong = table.index[~table[label].isin(["0", "1"])]
        if len(wrong):
            raise DataError(f"{path} row {wrong[0] + 2}: {label} is {table[label][wrong[0]]!r}, neither 0 nor 1")
    unknown = set(table["Modality"]) - set(MODALITIES)
    if unknown:
        raise DataError(f"{path}: unknown Modality {min(unknown)!r}; known are {', '.join(MODALITIES)}")
    labels = table[list(LABELS)].astype(int).to_dict("records")
    uids = table[_UID_COLUMN].tolist()
    return (
        {u: {str(k): int(v) for k, v in row.items()} for u, row in zip(uids, labels, strict=True)},
        dict(zip(uids, table["Modality"], strict=True)),
    )


def _localizers(path: Path) -> dict[str, list[Localizer]]:
    columns = [_UID_COLUMN, "SOPInstanceUID", "coordinates", "location"]
    table = _read_csv(path, columns)
    by_series: dict[str, list[Localizer]] = defaultdict(list)
    if table is None:
        return by_series
    for i, (uid, sop, coordinates, location) in enumerate(table[columns].itertuples(index=False, name=None)):
        by_series[uid].append(_localizer(i + 2, uid, sop, str(coordinates), location))
    return by_series


def _localizer(row: int, uid: str, sop: str, coordinates: str, location: str) -> Localizer:
    # A Python dict as text, with single quotes: JSON can't read it, and eval would run whatever stands there.
    try:
        point = ast.literal_eval(coordinates)
        x, y = float(point["x"]), float(point["y"])
        frame = None if point.get("f") is None else int(point["f"])
    except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, MemoryError):
        return Localizer(
            row, uid, sop, location, problem=f"coordinates {coordinates[:60]!r} are not {{'x': ..., 'y': ...}}"
        )
    if not (math.isfinite(x) and math.isfinite(y)):
        return Localizer(row, uid, sop, location, problem=f"coordinates {coordinates[:60]!r} are not finite")
    if location not in SITES:
        return Localizer(row, uid, sop, location, x, y, frame, problem=f"{location!r} is none of the 13 sites")
    return Localizer(row, uid, sop, location, x, y, frame)
