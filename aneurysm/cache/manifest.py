"""Rows of manifest.csv and lesions.csv: what volumes and records give, and reading them. tables.py writes both."""

from __future__ import annotations

import csv
import hashlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from aneurysm.cache.builder import builder_name
from aneurysm.cache.layout import IMAGE, CacheLayout
from aneurysm.cache.metadata import Record, VolumeMetadata
from aneurysm.documents import MOST_JSON, parse_json, read_bounded, read_json
from aneurysm.errors import CacheError
from aneurysm.labels import LABELS
from aneurysm.processes.files import tree_bytes, write_json
from aneurysm.processes.shared_folder import describe_denial

MANIFEST_COLUMNS: Final = (
    "series_uid",
    "status",
    "reason",
    "detail",
    "modality",
    "shape",
    "digest",
    "voxel_hash",
    "annotation_hash",
    "patient_key",
    *LABELS,
    "n_lesions",
    "n_unplaced",
    "seconds",
    "bytes_in",
    "bytes_out",
    "modality_source",
    "built_by",
    "seconds_check",
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

ManifestRow = dict[str, str]


def read_manifest(path: Path) -> list[ManifestRow]:
    """Return the rows of manifest.csv. Raises as `iter_manifest` does."""
    return list(iter_manifest(path))


def iter_manifest(path: Path) -> Iterator[ManifestRow]:
    """
    Yield the rows of manifest.csv; all values are text.

    Raises
    ------
    CacheError
        It is missing, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [c for c in MANIFEST_COLUMNS if c not in (reader.fieldnames or ())]:
                raise CacheError(f"{path} lacks the column(s) {', '.join(missing)}")
            yield from reader
    except FileNotFoundError as error:
        raise CacheError(f"{path} is missing") from error
    except OSError as error:
        raise CacheError(f"{path} can't be read: {describe_denial(error)}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CacheError(f"{path} can't be read: {error}") from error


def leave_seconds(layout: CacheLayout, seconds: Mapping[str, float]) -> None:
    """Leave for the next `aneurysm.cache.tables.write_tables` how long series took: for tasks that write no tables."""
    if seconds:
        taken = {uid: f"{s:.3f}" for uid, s in seconds.items()}
        checked = {uid: [s, _check_of(uid, s)] for uid, s in taken.items()}
        write_json(layout.seconds / f"{secrets.token_hex(8)}.json", checked)


def left_seconds(path: Path) -> dict[str, str]:
    """
    Return what `leave_seconds` left in the file ``path``: seconds as text, by UID.

    Raises
    ------
    CacheError
        It is damaged.
    """
    try:
        content = read_json(path)
        if all(check == _check_of(uid, seconds) for uid, (seconds, check) in content.items()):
            return {uid: seconds for uid, (seconds, _) in content.items()}
    except FileNotFoundError:
        return {}  # another run has put it into the manifest just now
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CacheError(f"{path} is damaged: {type(error).__name__}") from error
    raise CacheError(f"{path} was changed or damaged since it was written")


def manifest_row(entry: VolumeMetadata | Record, path: Path, seconds: str) -> ManifestRow:
    """Return the manifest's row of the volume or record at ``path``, of which ``entry`` is the content."""
    uid = path.name.removesuffix(path.suffix)
    row: dict[str, Any] = dict.fromkeys(MANIFEST_COLUMNS, "")
    labels = entry.labels or {}
    row |= {
        "series_uid": uid,
        "modality": entry.modality,
        "digest": entry.digest,
        **{label: labels.get(label, "") for label in LABELS},
        "n_lesions": 0,
        "n_unplaced": len(entry.unplaced_lesions),
        "modality_source": entry.modality_source,
    }
    if isinstance(entry, Record):
        row |= {
            "status": entry.status,
            "reason": entry.reason,
            "detail": entry.detail,
            "annotation_hash": entry.record_hash,
        }
    else:
        row |= {
            "status": "cached",
            "detail": "; ".join(d.code for d in entry.decisions),
            "shape": "x".join(str(n) for n in shape_of(path)),
            "voxel_hash": entry.voxel_hash,
            "annotation_hash": entry.annotation_hash,
            "patient_key": entry.patient_key,
            "n_lesions": len(entry.lesions),
            "bytes_in": entry.source.bytes,
            "bytes_out": tree_bytes(path),
            "built_by": builder_name(entry.built_by),
        }
    # One line a series, whatever a file put into a message.
    return with_seconds({k: " ".join(str(v).split()) for k, v in row.items()}, seconds)


def with_seconds(row: ManifestRow, seconds: str) -> ManifestRow:
    """Return a row with another time, and the check of it: how long a series took stands nowhere else."""
    return row | {"seconds": seconds, "seconds_check": _check_of(row["series_uid"], seconds)}


def known_seconds(row: ManifestRow) -> str:
    """Return how long a series of the manifest took; empty if that is unknown, or was changed or damaged."""
    fits = row["seconds_check"] == _check_of(row["series_uid"], row["seconds"])
    return row["seconds"] if fits else ""


def _check_of(uid: str, seconds: str) -> str:
    return hashlib.sha256(f"{uid}\0{seconds}".encode()).hexdigest()[:8] if seconds else ""


def shape_of(volume: Path) -> list[int]:
    """Return the voxels of a volume along (z, y, x), by its array's metadata; nothing if these are damaged."""
    try:
        return parse_shape(read_bounded(volume / IMAGE / "zarr.json", MOST_JSON))
    except (OSError, ValueError, KeyError, TypeError):
        return []


def parse_shape(content: bytes) -> list[int]:
    """Return the shape by an array's zarr.json. Raises `ValueError`, `KeyError` or `TypeError` if it is damaged."""
    return [int(n) for n in parse_json(content)["shape"]]


def lesion_rows(entry: VolumeMetadata | Record, uid: str) -> list[ManifestRow]:
    """Return the rows of lesions.csv of a series, a volume or a record."""
    rows = []
    for lesion in () if isinstance(entry, Record) else entry.lesions:
        places = [f"{v:.4f}" for v in (*lesion.zyx, *lesion.lps_mm)]
        values = [uid, str(lesion.row), lesion.location, "placed", "", "", *places]
        rows.append(dict(zip(LESION_COLUMNS, values, strict=True)))
    for unplaced in entry.unplaced_lesions:
        why = [unplaced.location, "unplaced", unplaced.reason, " ".join(unplaced.detail.split())]
        rows.append(dict(zip(LESION_COLUMNS, [uid, str(unplaced.row), *why, *[""] * 6], strict=True)))
    return rows
