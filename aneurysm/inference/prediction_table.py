"""Predictions <-> a CSV or JSON file that a later run goes on with.

The file is replaced as a whole: at every moment it is complete, whatever happens to the run. Every row says by which
model and options it was made, so that answers of two models never stand in one file.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from aneurysm.csv_table import csv_text
from aneurysm.documents import parse_json
from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.inference.calibration import checkpoint_digest
from aneurysm.inference.prediction import Prediction
from aneurysm.inference.read_series import Failure
from aneurysm.labels import LABELS
from aneurysm.processes.files import is_disk_full, sweep_temporaries, write_atomically
from aneurysm.processes.locks import take_lock

_COLUMNS: Final = (
    "series_uid",
    "status",
    "reason",
    "detail",
    *LABELS,
    "candidates",
    "decisions",
    "model",
    "calibration",
    "gate",
)
_KINDS: Final = (".csv", ".json")


def model_key(checkpoints: Sequence[Path], **options: Any) -> str:
    """Return a hash of the checkpoints' bytes and of the options that change an answer."""
    key = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for path in checkpoints:
        key.update(bytes.fromhex(checkpoint_digest(path)))
    return key.hexdigest()[:12]


@contextmanager
def open_table(path: Path, model: str, calibration: str = "", gate: float = 0.0) -> Iterator[PredictionTable]:
    """
    Yield the table at ``path``, which no other process can have meanwhile: each would write over the other's rows.

    Parameters are those of `PredictionTable`.

    Raises
    ------
    UsageError
        Another process has it, or what `PredictionTable` raises.
    """
    _check_name(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = take_lock(lock)
    except OSError as error:
        raise _unwritable(path, error) from error
    if descriptor is None:
        raise UsageError(f"another command is at work on {path}: wait for it, or name another file")
    try:
        sweep_temporaries(path.absolute().parent, glob.escape(path.name))
        yield PredictionTable(path, model, calibration, gate)
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


class PredictionTable:
    """
    The answers so far, by series, in the order in which they came. See `open_table`.

    Parameters
    ----------
    path
        A ``.csv`` or ``.json`` file; what it holds already is read.
    model
        As `model_key` gives it.
    calibration, gate
        Said in each row: the key of the calibration, empty if there is none, and the gate's alpha.

    Raises
    ------
    UsageError
        The name ends otherwise, there is no such folder, or the file was made by another model or is damaged.
    """

    def __init__(self, path: Path, model: str, calibration: str = "", gate: float = 0.0) -> None:
        _check_name(path)
        self.path = path
        self._made_by = {"model": model, "calibration": calibration, "gate": gate}
        self.rows: dict[str, dict[str, Any]] = {}
        try:
            rows = _read(path) if path.exists() else []
            for row in rows:
                self.rows[row["series_uid"]] = row
            others = {row["model"] for row in rows} - {model}
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise UsageError(f"{path} is not a table of predictions ({error}): name another file") from error
        if others:
            raise UsageError(
                f"{path} holds predictions of another model or other options, such as calibration: name another file"
            )

    def has(self, uid: str, *, retry_failed: bool = False) -> bool:
        """Return True if there is an answer for a series, or, unless ``retry_failed``, the reason why there is none."""
        row = self.rows.get(uid)
        return row is not None and not (retry_failed and row["status"] != "predicted")

    def add(self, answer: Prediction | Failure) -> None:
        """Take an answer; `write` makes it last."""
        self.rows[answer.series_uid] = _row(answer) | self._made_by

    @property
    def bad(self) -> int:
        """How many series have no prediction."""
        return sum(row["status"] != "predicted" for row in self.rows.values())

    def write(self) -> None:
        """
        Replace the file.

        Raises
        ------
        NoSpaceError
            The disk is full; the file is as it was.
        UsageError
            It can't be written for another reason.
        """
        text = _csv(self.rows.values()) if self.path.suffix == ".csv" else _json(self.rows.values())
        try:
            write_atomically(self.path, text)
        except OSError as error:
            if not is_disk_full(error):
                raise _unwritable(self.path, error) from error
            raise NoSpaceError(
                f"the disk of {self.path} is full. It holds the answers that were written before; free some space, and "
                "the same command goes on"
            ) from error


def _check_name(path: Path) -> None:
    if path.suffix not in _KINDS:
        raise UsageError(f"{path}: the name must end in {' or '.join(_KINDS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.absolute().parent}")
    if path.exists() and not path.is_file():  # a device or a pipe may never end
        raise UsageError(f"{path} is no file: name another")


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} can't be written: {error.strerror or error}")


def _row(answer: Prediction | Failure) -> dict[str, Any]:
    if isinstance(answer, Failure):
        why = {"status": answer.status, "reason": str(answer.reason), "detail": answer.detail}
        found: dict[str, Any] = {"candidates": [], "decisions": []}
    else:
        why = {"status": "predicted", "reason": "", "detail": ""}
        found = {
            # Places to micrometres; of probabilities all digits, or the surest would tie.
            "candidates": [_rounded(asdict(c)) | {"probability": c.probability} for c in answer.candidates],
            "decisions": [f"{d.code}: {d.detail}" for d in answer.decisions],
        }
    return {"series_uid": answer.series_uid, **why, "probabilities": answer.probabilities, **found}


def _rounded(content: Any) -> Any:
    """Return it with all numbers rounded to 6 digits after the point."""
    match content:
        case float():
            return round(content, 6)
        case dict():
            return {k: _rounded(v) for k, v in content.items()}
        case list() | tuple():
            return [_rounded(v) for v in content]
    return content


def _json(rows: Iterable[dict[str, Any]]) -> str:
    return json.dumps({"labels": LABELS, "series": list(rows)}, indent=1, allow_nan=False) + "\n"


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        lists = {k: json.dumps(row[k], separators=(",", ":"), allow_nan=False) for k in ("candidates", "decisions")}
        cells.append({**row, **(row["probabilities"] or {}), **lists})
    return csv_text(_COLUMNS, cells)


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        content = parse_json(path.read_text("utf-8"))
        return list(content["series"])
    csv.field_size_limit(sys.maxsize)  # hundreds of candidates are longer than its default
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            known: dict[str, Any] = {
                k: row[k] for k in ("series_uid", "status", "reason", "detail", "model", "calibration")
            }
            known["gate"] = float(row["gate"])
            known["probabilities"] = {label: float(row[label]) for label in LABELS} if row[LABELS[0]] else None
            rows.append({**known, **{k: parse_json(row[k]) for k in ("candidates", "decisions")}})
    return rows
