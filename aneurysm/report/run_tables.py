"""Tables of a run -> its predictions and candidates, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm.errors import DataError
from aneurysm.labels import LABELS, SITES, UNKNOWN
from aneurysm.prediction_table import PredictionRow


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


def checked_predictions(path: Path, rows: Sequence[PredictionRow], patients: Mapping[str, str]) -> Predictions:
    """
    Return the predictions in the rows of ``path``, all of which have one and a truth.

    Parameters
    ----------
    patients
        Key of each series' patient, empty if it is not known.

    Raises
    ------
    DataError
        There are none, or one is no probability.
    """
    if not rows:
        raise DataError(f"{path} has no series")
    rows = sorted(rows, key=lambda row: row.series_uid)
    probabilities = np.array([[(row.probabilities or {})[name] for name in LABELS] for row in rows], np.float64)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        row, column = np.argwhere(~((probabilities >= 0) & (probabilities <= 1)))[0]
        raise DataError(
            f"{path}: of {rows[row].series_uid}, {LABELS[column]!r} is {probabilities[row, column]}, which is "
            "no probability. Has the run diverged?"
        )
    truth = [[UNKNOWN if (y := (row.truth or {}).get(name)) is None else y for name in LABELS] for row in rows]
    return Predictions(
        np.array([row.series_uid for row in rows]),
        np.array([patients.get(row.series_uid) or f"series {row.series_uid}" for row in rows]),
        np.array([row.modality for row in rows]),
        np.array([row.fold or 0 for row in rows], np.int64),
        probabilities,
        np.array(truth, np.uint8),
    )


def candidates_of(rows: Sequence[PredictionRow]) -> Candidates | None:
    """Return the candidates in rows, None if a row has none because none were asked for."""
    if any(row.candidates is None for row in rows):
        return None
    located = [(row.series_uid, candidate) for row in rows for candidate in row.candidates or []]
    return Candidates(
        np.array([uid for uid, _ in located], np.str_),
        np.array([SITES.index(c["site"]) for _, c in located], np.int64),
        np.array([c["probability"] for _, c in located], np.float64),
        np.array([c["lps_mm"] for _, c in located], np.float64).reshape(-1, 3),
    )
