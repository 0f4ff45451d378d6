"""
Folds of whole patients: assign them, write them to folds.csv, read those of a given file.

`folds.csv` has the columns ``series_uid, patient_key, fold``. A series of an unknown patient is a patient of its own.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aneurysm.csv_table import csv_text, read_csv_rows
from aneurysm.errors import DataError, UsageError
from aneurysm.labels import UNKNOWN
from aneurysm.processes.files import write_atomically

FOLD_COLUMNS = ("series_uid", "patient_key", "fold")


def assign_folds(
    uids: Sequence[str],
    patient_keys: Sequence[str],
    present: ArrayLike,
    modalities: Sequence[str],
    *,
    n_folds: int = 5,
    seed: int = 0,
) -> NDArray[np.int64]:
    """
    Deal the patients of each stratum, in an order drawn from ``seed``, to the folds in turn.

    A stratum is one presence of an aneurysm (in any of the patient's series) and one set of modalities. Folds differ by
    at most one patient in each stratum, and in all. The order of the series has no say.

    Parameters
    ----------
    uids, patient_keys, modalities
        n of each, as in `aneurysm.cache.cache.Cache`; an empty key is a patient of its own.
    present
        (n,): 0, 1, or 255 if not known.
    n_folds
        2 or more.
    seed
        Other seeds make other folds.

    Returns
    -------
    NDArray
        (n,) int64, 0 to ``n_folds - 1``.

    Raises
    ------
    UsageError
        There are fewer than two folds, or fewer patients than folds.
    """
    patients = _patients(uids, patient_keys)
    if not 2 <= n_folds <= len(patients):
        raise UsageError(
            f"can't make {n_folds} folds of {len(patients)} patients: there must be 2 folds or more, each of some"
        )
    presence = np.asarray(present)
    strata: dict[tuple[int, tuple[str, ...]], list[str]] = defaultdict(list)
    for patient, series in patients.items():
        known = [int(presence[i]) for i in series if presence[i] != UNKNOWN]
        strata[max(known, default=UNKNOWN), tuple(sorted({modalities[i] for i in series}))].append(patient)
    # A hash rather than a shuffle: the order of two patients does not depend on which others there are.
    dealt = [p for _, stratum in sorted(strata.items()) for p in sorted(stratum, key=lambda p: _draw(seed, p))]
    folds = np.empty(len(uids), np.int64)
    for turn, patient in enumerate(dealt):
        folds[patients[patient]] = turn % n_folds
    return folds


def write_folds(path: str | Path, uids: Sequence[str], patient_keys: Sequence[str], folds: ArrayLike) -> None:
    """Write ``folds.csv``, sorted by UID, so that equal folds are equal files."""
    rows = sorted(zip(uids, patient_keys, np.asarray(folds).tolist(), strict=True))
    write_atomically(Path(path), csv_text(FOLD_COLUMNS, rows))


def read_folds(path: str | Path, uids: Sequence[str], patient_keys: Sequence[str]) -> NDArray[np.int64]:
    """
    Read the fold of each series from a file with the columns ``series_uid`` and ``fold``.

    Series of the file that are not in ``uids`` are passed over, so that one file serves caches of several specs, which
    need not reject the same series.

    Returns
    -------
    NDArray
        (n,) int64, in the order of ``uids``.

    Raises
    ------
    DataError
        The file can't be read, a fold is not a whole number from 0, a series is missing or there twice, or a patient
        stands in two folds, by ``patient_keys`` or by the file's own.
    """
    rows = fold_rows(path)
    if missing := [uid for uid in uids if uid not in rows]:
        raise DataError(f"{path} has no fold for {_some(missing)} of {len(uids)} series in the cache")
    folds = np.array([rows[uid][1] for uid in uids], np.int64)
    # Keys of the file may come from another cache, whose keys differ: each kind only speaks for itself.
    for keys in (patient_keys, [rows[uid][0] for uid in uids]):
        if torn := [p for p, series in _patients(uids, keys).items() if len(set(folds[series])) > 1]:
            raise DataError(
                f"{path} has patients in more than one fold: {_some(torn)}. They would be trained and tested on"
            )
    return folds


def fold_rows(path: str | Path) -> dict[str, tuple[str, int]]:
    """
    Return each series' patient key (empty if not known) and fold, by UID, whatever cache they are of.

    Raises
    ------
    DataError
        The file can't be read, a fold is not a whole number from 0, or a series is there twice.
    """
    path = Path(path)
    folds: dict[str, tuple[str, int]] = {}
    try:
        rows = list(read_csv_rows(path, ("series_uid", "fold")))
    except OSError as error:
        raise DataError(f"can't read folds from {path}: {error.strerror or error}") from error
    for row in rows:
        uid, fold = row["series_uid"], row["fold"]
        if not (fold.isascii() and fold.isdigit()):
            raise DataError(f"{path}, line {row.line}: the fold of {uid} is {fold!r}, not a whole number from 0")
        if uid in folds:
            raise DataError(f"{path}, line {row.line}: {uid} is there twice")
        folds[uid] = (row.cells.get("patient_key", ""), int(fold))
    return folds


def _patients(uids: Sequence[str], patient_keys: Sequence[str]) -> dict[str, list[int]]:
    patients: dict[str, list[int]] = defaultdict(list)
    for i, (uid, key) in enumerate(zip(uids, patient_keys, strict=True)):
        patients[key or f"series {uid}"].append(i)
    return patients


def _draw(seed: int, patient: str) -> bytes:
    return hashlib.sha256(f"{seed} {patient}".encode()).digest()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
