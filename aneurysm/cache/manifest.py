"""Volumes and records on disk -> manifest.csv and lesions.csv. Both are derived: a run makes them anew."""

from __future__ import annotations

import csv
import json
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from aneurysm.cache.layout import CacheLayout, tree_bytes
from aneurysm.cache.publish import write_atomically, write_json
from aneurysm.csv_table import csv_text
from aneurysm.errors import CacheError
from aneurysm.labels import LABELS
from aneurysm.locks import one_at_a_time
from aneurysm.threads import look_at_each

COLUMNS: Final = (
    "series_uid",
    "status",
    "reason",
    "detail",
    "modality",
    "shape",
    "digest",
    "content_hash",
    "patient_key",
    *LABELS,
    "n_lesions",
    "seconds",
    "bytes_in",
    "bytes_out",
    "modality_source",
)
LESION_COLUMNS: Final = (
    "series_uid",
    "row",
    "location",
    "status",
    "reason",
    "detail",
    "z",
    "y",
    "x",
    "lps_x_mm",
    "lps_y_mm",
    "lps_z_mm",
)

Row = dict[str, str]

ODD: Final = (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What comes of metadata that are damaged, or that vanish while they are read."""


def read_attributes(volume: Path) -> dict[str, Any]:
    """
    Return the attribute ``aneurysm`` of a volume.

    zarr.json is read as JSON here: opening thousands of groups with zarr-python just for this takes minutes.

    Raises
    ------
    CacheError
        The metadata is missing, is not JSON, or lacks the attribute.
    """
    path = volume / "zarr.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CacheError(f"{path} is missing") from error
    except OSError as error:
        raise CacheError(f"{path} is damaged: {type(error).__name__} {error}") from error
    return parse_attributes(content, str(path))


def parse_attributes(content: bytes, name: str) -> dict[str, Any]:
    """Return the attribute ``aneurysm`` of zarr.json, which errors call ``name``. Raises as `read_attributes` does."""
    try:
        attributes = json.loads(content)["attributes"]["aneurysm"]
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{name} is damaged: {type(error).__name__} {error}") from error
    if not isinstance(attributes, dict):
        raise CacheError(f"{name} is damaged: the attribute aneurysm is no table")
    return attributes


def read_manifest(path: Path) -> list[Row]:
    """
    Return the rows of manifest.csv; all values are text.

    Raises
    ------
    CacheError
        It is missing, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
    except FileNotFoundError as error:
        raise CacheError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CacheError(f"{path} can't be read: {error}") from error
    if missing:
        raise CacheError(f"{path} lacks the column(s) {', '.join(missing)}")
    return rows


def write_manifest(layout: CacheLayout, seconds: Mapping[str, float] | None = None) -> list[Row]:
    """
    Derive manifest.csv and lesions.csv from what is on disk; return the manifest's rows.

    ``seconds`` are of this run; for other series they are taken over from what `leave_seconds` left and from the old
    manifest, the one thing that stands nowhere else. A volume or record that can't be read, or has vanished meanwhile,
    has no row: `aneurysm verify` speaks of it.
    """
    # Of two that look at the disk and write at the same time, the one that looked first might write last.
    with one_at_a_time(layout.spec):
        known = {uid: f"{s:.3f}" for uid, s in (seconds or {}).items()}
        left = sorted(layout.seconds.glob("*.json"))
        for path in left:
            for uid, taken in _left_seconds(path).items():
                known.setdefault(uid, taken)
        try:
            for row in read_manifest(layout.manifest):
                if row["seconds"]:
                    known.setdefault(row["series_uid"], row["seconds"])
        except CacheError:
            pass  # the first run, or a damaged one that is being replaced
        rows, lesions = _rows(layout, known)
        rows.sort(key=lambda r: r["series_uid"])
        lesions.sort(key=lambda r: r["series_uid"])
        write_atomically(layout.manifest, csv_text(COLUMNS, rows))
        write_atomically(layout.lesions, csv_text(LESION_COLUMNS, lesions))
        for path in left:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # absent, or another task has just left something
            layout.seconds.rmdir()
    return rows


def leave_seconds(layout: CacheLayout, seconds: Mapping[str, float]) -> None:
    """Leave for the next `write_manifest` how long series took: for tasks that write no manifest themselves."""
    if seconds:
        write_json(layout.seconds / f"{secrets.token_hex(8)}.json", dict(seconds))


def _left_seconds(path: Path) -> dict[str, str]:
    try:
        return {str(uid): f"{float(s):.3f}" for uid, s in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _rows(layout: CacheLayout, seconds: Mapping[str, str]) -> tuple[list[Row], list[Row]]:
    """Return the rows of all volumes and records, and those of their lesions; a volume counts before a record."""

    def look(path: Path) -> tuple[Row, list[Row]] | None:
        # Only rows are kept: the metadata of 100,000 volumes would take gigabytes.
        try:
            entry = _entry(path)
            return manifest_row(entry, seconds.get(entry["series_uid"], "")), list(_lesion_rows(entry))
        except (CacheError, *ODD):
            return None

    rows: dict[str, Row] = {}
    lesions: list[Row] = []
    paths = [*layout.volumes.glob("*.zarr"), *layout.rejected.glob("*.json")]
    for row, of_lesions in filter(None, look_at_each(paths, look)):
        if row["series_uid"] not in rows:
            rows[row["series_uid"]] = row
            lesions += of_lesions
    return list(rows.values()), lesions


def _entry(path: Path) -> dict[str, Any]:
    """Return what is known of a volume or of a record."""
    uid = path.name.removesuffix(path.suffix)
    if path.suffix == ".zarr":
        return {**read_attributes(path), "series_uid": uid, "status": "cached", "folder": path}
    return {**json.loads(path.read_text("utf-8")), "series_uid": uid}


def manifest_row(entry: Mapping[str, Any], seconds: str) -> Row:
    """Return the manifest's row of a volume's attributes (with ``status`` and ``folder``) or of a record."""
    cached = entry["status"] == "cached"
    labels = entry.get("labels") or {}
    row: dict[str, Any] = {
        "series_uid": entry["series_uid"],
        "status": entry["status"],
        "reason": entry.get("reason", ""),
        "detail": "; ".join(str(d["code"]) for d in entry.get("decisions", ())) if cached else entry.get("detail", ""),
        "modality": entry.get("modality", ""),
        "shape": "x".join(str(n) for n in _shape(entry["folder"])) if cached else "",
        "digest": entry.get("digest", ""),
        "content_hash": entry.get("content_hash", ""),
        "patient_key": entry.get("patient_key", ""),
        **{label: labels.get(label, "") for label in LABELS},
        "n_lesions": len(entry.get("lesions", ())),
        "seconds": seconds,
        "bytes_in": entry["source"]["bytes"] if cached else entry.get("bytes_in", ""),
        "bytes_out": tree_bytes(entry["folder"]) if cached else "",
        "modality_source": entry.get("modality_source", ""),
    }
    # One line a series, whatever a file put into a message.
    return {k: " ".join(str(v).split()) for k, v in row.items()}


def _shape(volume: Path) -> list[int]:
    try:
        return [int(n) for n in json.loads((volume / "0" / "zarr.json").read_text("utf-8"))["shape"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _lesion_rows(entry: Mapping[str, Any]) -> Iterable[Row]:
    uid = str(entry["series_uid"])
    for lesion in entry.get("lesions", ()):
        places = [f"{v:.4f}" for v in (*lesion["zyx"], *lesion["lps_mm"])]
        values = [uid, str(lesion["row"]), lesion["location"], "placed", "", "", *places]
        yield dict(zip(LESION_COLUMNS, values, strict=True))
    for lesion in entry.get("unplaced_lesions", ()):
        told = [lesion["location"], "unplaced", lesion["reason"], " ".join(str(lesion["detail"]).split())]
        yield dict(zip(LESION_COLUMNS, [uid, str(lesion["row"]), *told, *[""] * 6], strict=True))
