"""The table of predictions, a row per series: of held-out series from training, or from `aneurysm predict`.

One schema for both, as CSV or JSON, so that `aneurysm evaluate` reads either. Only training knows ``modality``,
``fold``, ``part``, ``epoch``, ``digest`` and the truth, only predicting ``model``, ``calibration`` and ``gate``; the
other's cells are empty, and without a truth its columns are not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from aneurysm.csv_table import MAX_BYTES, TableRow, csv_text, read_csv_rows
from aneurysm.documents import parse_json, read_bounded
from aneurysm.errors import DataError
from aneurysm.labels import LABELS, SITES

TABLE_VERSION: Final = 1
PREDICTED: Final = "predicted"
"""The status of a series that has a prediction."""
_TEXTS: Final = ("series_uid", "status", "reason", "detail")
_ABOUT: Final = ("modality", "fold", "part", "epoch", "digest", "model", "calibration", "gate")
_LISTS: Final = ("candidates", "decisions")
_COLUMNS: Final = (*_TEXTS, *LABELS, *_LISTS, *_ABOUT, "format_version")
_TRUTH: Final = tuple(f"y: {label}" for label in LABELS)
_MAX_CELL: Final = 1 << 24
"""Characters: ten thousand candidates take two million."""


@dataclass(frozen=True)
class PredictionRow:
    """
    One series.

    Attributes
    ----------
    status, reason, detail
        `PREDICTED`; or ``rejected`` or ``failed``, and why: see `aneurysm.errors.Reason`.
    probabilities
        By label. Of a series without a prediction they are base rates, or None.
    candidates
        The most probable first: ``site``, ``probability``, ``lps_mm``, ``zyx`` and, if known, ``source``; None if none
        were asked for.
    decisions
        What was decided while the series became a volume.
    modality, fold, part, epoch, digest
        Of the series, the fold that was held out, which part of the data (see
        `aneurysm.training.validation.ValidationPart`), the epoch that the checkpoint has seen, the cache's spec.
    model, calibration, gate
        What the answer was made by; see `aneurysm.inference.output_table`.
    truth
        By label: 0, 1, or None for one that is not known.
    """

    series_uid: str
    status: str = PREDICTED
    reason: str = ""
    detail: str = ""
    probabilities: dict[str, float] | None = None
    candidates: list[dict[str, Any]] | None = None
    decisions: list[str] = field(default_factory=list)
    modality: str = ""
    fold: int | None = None
    part: str = ""
    epoch: int | None = None
    digest: str = ""
    model: str = ""
    calibration: str = ""
    gate: float | None = None
    truth: dict[str, int | None] | None = None


def candidate_entry(
    site: str,
    probability: float,
    lps_mm: Iterable[float],
    zyx: Iterable[float],
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a candidate for a row: places to micrometres, of probabilities all digits, or the surest would tie."""
    entry = {"site": site, "probability": float(probability), "lps_mm": _rounded(lps_mm), "zyx": _rounded(zyx)}
    if source is None:
        return entry | {"source": None}
    return entry | {"source": {k: round(v, 6) if isinstance(v, float) else v for k, v in source.items()}}


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 6) for value in values]


def table_text(rows: Iterable[PredictionRow], kind: str) -> str:
    """Return the table as ``.csv`` or ``.json``. Raises `ValueError` for a candidate's number that is none."""
    return _json(list(rows)) if kind == ".json" else _csv(list(rows))


def _json(rows: list[PredictionRow]) -> str:
    series = [{k: v for k, v in asdict(row).items() if k != "truth" or v is not None} for row in rows]
    content = {"format_version": TABLE_VERSION, "labels": LABELS, "series": series}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _csv(rows: list[PredictionRow]) -> str:
    truth = _TRUTH if any(row.truth is not None for row in rows) else ()
    cells = []
    for row in rows:
        values: dict[str, Any] = {k: "" if (v := getattr(row, k)) is None else v for k in (*_TEXTS, *_ABOUT)}
        values |= row.probabilities or {}
        for name in _LISTS:
            content = getattr(row, name)
            values[name] = "" if content is None else json.dumps(content, separators=(",", ":"), allow_nan=False)
        values |= {f"y: {label}": "" if y is None else y for label, y in (row.truth or {}).items()}
        cells.append(values | {"format_version": TABLE_VERSION})
    return csv_text((*_COLUMNS, *truth), cells)


def read_rows(path: Path) -> list[PredictionRow]:
    """
    Read a table.

    Raises
    ------
    DataError
        It is none, of another version or of other labels, damaged, or has two rows of one series.
    """
    try:
        rows = _from_json(path) if path.suffix == ".json" else _from_csv(path)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no table of predictions, or damaged ({type(error).__name__}: {error})") from error
    seen: set[str] = set()
    for row in rows:
        if row.series_uid in seen:
            raise DataError(f"{path} has two rows of series {row.series_uid}")
        seen.add(row.series_uid)
        if strange := {c["site"] for c in row.candidates or []} - set(SITES):
            raise DataError(f"{path}: series {row.series_uid} has a candidate at {min(strange)!r}, which is no site")
    return rows


def _from_csv(path: Path) -> list[PredictionRow]:
    rows = list(read_csv_rows(path, _COLUMNS, max_cell=_MAX_CELL))
    for row in rows:
        _check_version(path, row["format_version"])
    return [_from_cells(row) for row in rows]


def _from_cells(row: TableRow) -> PredictionRow:
    truth = {label: _label(row.cells.get(f"y: {label}", "")) for label in LABELS}
    return PredictionRow(
        **{name: row[name] for name in _TEXTS},
        probabilities={label: float(row[label]) for label in LABELS} if any(row[label] for label in LABELS) else None,
        candidates=_candidates(parse_json(row["candidates"])) if row["candidates"] else None,
        decisions=list(parse_json(row["decisions"])) if row["decisions"] else [],
        fold=int(row["fold"]) if row["fold"] else None,
        epoch=int(row["epoch"]) if row["epoch"] else None,
        gate=float(row["gate"]) if row["gate"] else None,
        **{name: row[name] for name in ("modality", "part", "digest", "model", "calibration")},
        truth=truth if any(name in row.cells for name in _TRUTH) else None,
    )


def _from_json(path: Path) -> list[PredictionRow]:
    content = parse_json(read_bounded(path, MAX_BYTES))
    _check_version(path, content["format_version"])
    rows = []
    for row in content["series"]:
        for name in ("probabilities", "truth"):
            if row.get(name) is not None and set(row[name]) != set(LABELS):
                raise ValueError(f"the {name} of series {row['series_uid']} are of other labels")
        if row["candidates"] is not None:
            _candidates(row["candidates"])
        rows.append(PredictionRow(**row))
    return rows


def _candidates(content: Any) -> list[dict[str, Any]]:
    for candidate in content:
        numbers = [candidate["probability"], *candidate["lps_mm"]]
        if len(numbers) != 4 or not all(abs(float(n)) < float("inf") for n in numbers):
            raise ValueError("a candidate's probability or place is not a finite number")
    return list(content)


def _label(cell: str) -> int | None:
    if cell not in ("", "0", "1"):
        raise ValueError(f"a label is {cell!r}, expected 0, 1 or nothing")
    return int(cell) if cell else None


def _check_version(path: Path, version: Any) -> None:
    if str(version) != str(TABLE_VERSION):
        raise DataError(
            f"{path} is a table of predictions of version {str(version)[:20]!r}, this program reads version "
            f"{TABLE_VERSION}: predict again"
        )
