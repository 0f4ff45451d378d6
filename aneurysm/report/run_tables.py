"""Tables of a run -> its predictions and candidates, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm.errors import DataError
from aneurysm.labels import LABELS, SITES, UNKNOWN

_CANDIDATE_COLUMNS = ("series_uid", "site", "probability", "x_mm", "y_mm", "z_mm")


@dataclass(frozen=True)
class Predictions:
    """
    Answers of models about n series that they were not trained on, sorted by UID.

    Attributes
    ----------
    uids, patients, modalities
        (n,) strings. A series without a patient's key is a patient of its own.
    folds
        (n,) int64: the fold that was held out.
    probabilities
        (n, 14) float64 in the order of `LABELS`.
    truth
        (n, 14) uint8: 0, 1, or `UNKNOWN`.
    """

    uids: NDArray[np.str_]
    patients: NDArray[np.str_]
    modalities: NDArray[np.str_]
    folds: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    truth: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.uids)

    def known(self, label: int) -> NDArray[np.int64]:
        """Return the series of which a label is known."""
        return np.flatnonzero(self.truth[:, label] != UNKNOWN)

    def positive(self, label: int) -> NDArray[np.bool_]:
        """Return (n,): the label is known to be positive."""
        return np.asarray(self.truth[:, label] == 1)

    def select(self, series: NDArray[np.int64]) -> Predictions:
        """Return those of some series, by rising index."""
        return Predictions(
            self.uids[series],
            self.patients[series],
            self.modalities[series],
            self.folds[series],
            self.probabilities[series],
            self.truth[series],
        )


@dataclass(frozen=True)
class Candidates:
    """
    Places where a model suspects an aneurysm: c of them.

    Attributes
    ----------
    uids
        (c,): their series.
    sites
        (c,) int64: index into `SITES`.
    probabilities
        (c,) float64.
    lps_mm
        (c, 3) float64: (x, y, z) in patient space.
    """

    uids: NDArray[np.str_]
    sites: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    lps_mm: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.uids)


def read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return a CSV file as strings. Raises `DataError` if it is missing, damaged, or lacks one of ``columns``."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
        raise DataError(f"{path} is missing or damaged: {error}") from error
    if missing := [c for c in columns if c not in table.columns]:
        raise DataError(f"{path} has no column {', '.join(missing[:3])}; it has {', '.join(table.columns[:5])}, ...")
    if "fold" in columns and (wrong := table.loc[~table["fold"].str.fullmatch(r"[0-9]{1,9}"), "fold"]).size:
        raise DataError(f"{path}: a fold is {wrong.iloc[0]!r}, not a whole number from 0")
    return table


def checked_predictions(path: Path, table: pd.DataFrame, folds: pd.DataFrame) -> Predictions:
    """Return the predictions in a table that was read from ``path``. Raises `DataError` on what is wrong with them."""
    for kind in ("p: ", "y: "):
        found = {c.removeprefix(kind) for c in table.columns if c.startswith(kind)}
        if found != set(LABELS):
            lacks, has = sorted(set(LABELS) - found), sorted(found - set(LABELS))
            raise DataError(
                f"{path} is of another set of labels: columns {kind.strip()!r} lack {', '.join(lacks) or 'none'}"
                f" and have {', '.join(has) or 'none'} beside those expected"
            )
    if table.empty:
        raise DataError(f"{path} has no series")
    if (twice := table.loc[table["series_uid"].duplicated(), "series_uid"]).size:
        raise DataError(f"{path}: {twice.iloc[0]} is there twice")
    table = table.sort_values("series_uid")
    keys = dict(zip(folds["series_uid"], folds["patient_key"], strict=True))
    if missing := [uid for uid in table["series_uid"] if uid not in keys]:
        raise DataError(f"{path.with_name('folds.csv')} lacks {len(missing)} of the series predicted, {missing[0]} one")
    probabilities = _numbers(path, table[[f"p: {name}" for name in LABELS]])
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        row, column = np.argwhere(~((probabilities >= 0) & (probabilities <= 1)))[0]
        raise DataError(
            f"{path}: of {table['series_uid'].iloc[row]}, {LABELS[column]!r} is {probabilities[row, column]}, which is "
            "no probability. Has the run diverged?"
        )
    labels = table[[f"y: {name}" for name in LABELS]].to_numpy(str)
    if wrong := sorted(set(np.unique(labels).tolist()) - {"", "0", "1"}):
        raise DataError(f"{path}: a label is {wrong[0]!r}, expected 0, 1 or nothing")
    return Predictions(
        table["series_uid"].to_numpy(str),
        np.array([keys[uid] or f"series {uid}" for uid in table["series_uid"]]),
        table["modality"].to_numpy(str),
        table["fold"].to_numpy(np.int64),
        probabilities,
        np.where(labels == "", str(UNKNOWN), labels).astype(np.uint8),
    )


def read_candidates(path: Path, uids: set[str]) -> Candidates | None:
    """Return the candidates of series, None if there is no such file. Raises `DataError` if it is damaged."""
    if not path.exists():
        return None
    table = read_table(path, _CANDIDATE_COLUMNS)
    numbers = {site: i for i, site in enumerate(SITES)}
    if wrong := sorted(set(table["site"]) - set(numbers)):
        raise DataError(f"{path}: there is no site {wrong[0]!r}")
    if strange := sorted(set(table["series_uid"]) - uids):
        raise DataError(f"{path}: {strange[0]} is none of the series in predictions_val.csv")
    values = _numbers(path, table[["probability", "x_mm", "y_mm", "z_mm"]])
    if not np.isfinite(values).all():
        raise DataError(f"{path}: a probability or place is not a finite number")
    return Candidates(
        table["series_uid"].to_numpy(str),
        np.array([numbers[s] for s in table["site"]], np.int64),
        values[:, 0],
        values[:, 1:],
    )


def _numbers(path: Path, table: pd.DataFrame) -> NDArray[np.float64]:
    try:
        return table.to_numpy(np.float64)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
