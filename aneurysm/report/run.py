"""Run: what `aneurysm train` left in a run's folder about its held-out series, read and checked."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm.cache.catalog import UNKNOWN
from aneurysm.errors import DataError
from aneurysm.inference.calibration import checkpoint_digest
from aneurysm.labels import LABELS, SITES
from aneurysm.training.begun import read_begun

PARTS = {"val": "held-out series", "test": "series of a test fold", "external": "external series"}
"""Of which series predictions are, and how the report calls them; see `aneurysm.training.validation.Part`."""
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


@dataclass(frozen=True)
class Run:
    """
    One run.

    Attributes
    ----------
    name
        Of its folder.
    config, config_text
        Its config.toml; empty if it has none.
    candidates
        None if the run wrote none.
    epochs
        metrics.csv, a row per epoch; empty if there is none.
    assigned
        The fold of every series in folds.csv, by UID.
    checkpoint
        SHA-256 of checkpoints/best.ckpt, whose predictions these are; None if it is not there.
    fresh
        What was predicted anew (see `aneurysm.report.fresh`); empty if these are the predictions of training.
    remark
        What the weights that it began with may have learnt from; empty if it began with none.
    part
        Of which series: ``val`` picked the best epoch, ``test`` is a fold kept for a test, ``external`` another cache.
    digest
        Of the spec of the cache that was predicted; None in an older run, which does not say.
    """

    name: str
    root: Path
    config: dict[str, Any]
    config_text: str
    predictions: Predictions
    candidates: Candidates | None
    epochs: pd.DataFrame
    assigned: dict[str, int]
    checkpoint: str | None
    fresh: str = ""
    remark: str = ""
    part: str = "val"
    digest: str | None = None

    @property
    def cache(self) -> str | None:
        """Folder or URL of the cache that it was trained on, as its configuration says."""
        value = self.config.get("cache")
        return value if isinstance(value, str) and value else None


def read_run(root: str | Path) -> Run:
    """
    Read ``predictions_val.csv`` and ``folds.csv`` of a run, and what is there of ``config.toml``, ``init.json``,
    ``metrics.csv`` and ``candidates_val.csv``.

    Raises
    ------
    DataError
        There is no such run, it has no predictions yet, a file is damaged, or of other labels, or the predictions are
        not of the best checkpoint that is there.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"there is no run {root}")
    if not (root / "predictions_val.csv").exists():
        raise DataError(
            f"{root} has no predictions_val.csv: it is no run of `aneurysm train`, or has not validated yet"
        )
    folds = _read(root / "folds.csv", ("series_uid", "patient_key", "fold"))
    path = root / "predictions_val.csv"
    table = _read(path, ("series_uid", "modality", "fold"))
    predictions, about = _predictions(path, table, folds), _about(path, table)
    text, config = _config(root / "config.toml")
    best = root / "checkpoints" / "best.ckpt"
    begun = read_begun(root / "init.json")
    keys = dict(zip(folds["series_uid"], folds["patient_key"], strict=True))
    if best.is_file() and about["epoch"]:
        _check_epoch(best, about["epoch"])
    return Run(
        root.resolve().name,
        root,
        config,
        text,
        predictions,
        _candidates(root / "candidates_val.csv", set(predictions.uids.tolist())),
        _epochs(root / "metrics.csv"),
        dict(zip(folds["series_uid"], folds["fold"].astype(int), strict=True)),
        checkpoint_digest(best) if best.is_file() else None,
        remark="" if begun is None else begun.told(predictions.uids.tolist(), keys),
        part=about["part"] or "val",
        digest=about["digest"] or None,
    )


def _about(path: Path, table: pd.DataFrame) -> dict[str, str]:
    """Return what is the same for all series; empty in an older run, which does not say."""
    found = {}
    for name in ("part", "epoch", "digest"):
        values = sorted(set(table[name])) if name in table else [""]
        if len(values) > 1:
            raise DataError(f"{path}: its rows are of different {name}s, {values[0]} and {values[1]}")
        found[name] = values[0]
    if found["part"] not in ("", *PARTS):
        raise DataError(f"{path}: part is {found['part']!r}, expected one of {', '.join(PARTS)}")
    return found


def _check_epoch(best: Path, epoch: str) -> None:
    """Refuse what a run leaves that ends between writing the two: weights, with the predictions of others."""
    from aneurysm.training.checkpoint import read_file

    seen = read_file(best).get("epoch")
    if str(seen) != epoch:
        raise DataError(
            f"the predictions of {best.parent.parent} are of epoch {epoch}, its best.ckpt is of epoch {seen}: the run "
            "was ended between the two. Go on with it (aneurysm train --resume), or predict again (--fresh)"
        )


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
        raise DataError(f"{path} is missing or damaged: {error}") from error
    if missing := [c for c in columns if c not in table.columns]:
        raise DataError(f"{path} has no column {', '.join(missing[:3])}; it has {', '.join(table.columns[:5])}, ...")
    if "fold" in columns and (wrong := table.loc[~table["fold"].str.fullmatch(r"[0-9]{1,9}"), "fold"]).size:
        raise DataError(f"{path}: a fold is {wrong.iloc[0]!r}, not a whole number from 0")
    return table


def _predictions(path: Path, table: pd.DataFrame, folds: pd.DataFrame) -> Predictions:
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


def _candidates(path: Path, uids: set[str]) -> Candidates | None:
    if not path.exists():
        return None
    table = _read(path, _CANDIDATE_COLUMNS)
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


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.exists():
        return "", {}
    try:
        text = path.read_text("utf-8")
        return text, tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _epochs(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
