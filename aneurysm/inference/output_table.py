"""OutputTable: a table of predictions on its way, which a later run resumes.

The file is replaced as a whole: at every moment it is complete, whatever happens to the run. Every row says by which
model and options it was made, so that answers of two models never stand in one file.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from aneurysm.errors import DataError, NoSpaceError, UsageError
from aneurysm.inference.calibration import checkpoint_digest
from aneurysm.inference.prediction import Prediction
from aneurysm.inference.read_series import Failure
from aneurysm.prediction_table import PREDICTED, PredictionRow, candidate_entry, read_rows, table_text
from aneurysm.processes.files import is_disk_full, sweep_temporaries, write_atomically
from aneurysm.processes.locks import take_lock

_KINDS: Final = (".csv", ".json")


def model_key(checkpoints: Sequence[Path], **options: Any) -> str:
    """Return a hash of the checkpoints' bytes and of the options that change an answer."""
    key = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for path in checkpoints:
        key.update(bytes.fromhex(checkpoint_digest(path)))
    return key.hexdigest()[:12]


@contextmanager
def open_output(path: Path, model: str, calibration: str = "", gate: float = 0.0) -> Iterator[OutputTable]:
    """
    Yield the table at ``path``, which no other process can have meanwhile: each would write over the other's rows.

    Parameters are those of `OutputTable`.

    Raises
    ------
    UsageError
        Another process has it, or what `OutputTable` raises.
    """
    _check_name(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = take_lock(lock)
    except OSError as error:
        raise _unwritable(path, error) from error
    if descriptor is None:
        raise UsageError(f"another command writes to {path}: wait for it, or name another file")
    try:
        sweep_temporaries(path.absolute().parent, glob.escape(path.name))
        yield OutputTable(path, model, calibration, gate)
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


class OutputTable:
    """
    The answers so far, by series, in the order in which they came. See `open_output`.

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
        self._made_by: dict[str, Any] = {"model": model, "calibration": calibration, "gate": gate}
        try:
            rows = read_rows(path) if path.exists() else []
        except DataError as error:
            raise UsageError(f"{error}. Name another file for the predictions") from error
        self.rows = {row.series_uid: row for row in rows}
        if {row.model for row in rows} - {model}:
            raise UsageError(
                f"{path} holds predictions of another model or other options, such as calibration: name another file"
            )

    def has(self, uid: str, *, retry_failed: bool = False) -> bool:
        """Return True if there is an answer for a series, or, unless ``retry_failed``, the reason why there is none."""
        row = self.rows.get(uid)
        return row is not None and not (retry_failed and row.status != PREDICTED)

    def add(self, answer: Prediction | Failure) -> None:
        """Take an answer; `write` makes it last."""
        self.rows[answer.series_uid] = replace(_row(answer), **self._made_by)

    @property
    def bad(self) -> int:
        """How many series have no prediction."""
        return sum(row.status != PREDICTED for row in self.rows.values())

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
        text = table_text(self.rows.values(), self.path.suffix)
        try:
            write_atomically(self.path, text)
        except OSError as error:
            if not is_disk_full(error):
                raise _unwritable(self.path, error) from error
            raise NoSpaceError(
                f"the disk of {self.path} is full. It holds the answers that were written before; free some space, and "
                "the same command resumes"
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


def _row(answer: Prediction | Failure) -> PredictionRow:
    if isinstance(answer, Failure):
        return PredictionRow(
            answer.series_uid, answer.status, str(answer.reason), answer.detail, probabilities=answer.probabilities
        )
    return PredictionRow(
        answer.series_uid,
        probabilities=answer.probabilities,
        candidates=[
            candidate_entry(c.site, c.probability, c.lps_mm, c.zyx, None if c.source is None else asdict(c.source))
            for c in answer.candidates
        ],
        decisions=[f"{d.code}: {d.detail}" for d in answer.decisions],
    )
