"""Run: predictions with their truth, of a run's folder that `aneurysm train` left, or of a table, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from aneurysm.documents import MOST_TOML, parse_toml, read_bounded
from aneurysm.errors import DataError
from aneurysm.inference.calibration import checkpoint_digest
from aneurysm.inputs import Wanted, describe, mistake
from aneurysm.prediction_table import PREDICTED, PredictionRow, read_rows
from aneurysm.rawdata.tables import read_labels
from aneurysm.report.run_tables import Candidates, Predictions, candidates_of, checked_predictions, read_table
from aneurysm.training.lineage import read_lineage

PARTS = {
    "val": "held-out series",
    "test": "series of a test fold",
    "external": "external series",
    "predicted": "predicted series",
}
"""Of which series predictions are, and how the report calls them; see `aneurysm.training.validation.ValidationPart`. Of
``predicted`` ones nobody says whether the models have seen them."""
_Value = TypeVar("_Value", str, int | None)


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
        What was predicted again (see `aneurysm.report.repredict`); empty if these are the predictions of training.
    remark
        What the weights that it began with may have been trained on; empty if it began with none.
    part
        Of which series: ``val`` picked the best epoch, ``test`` is a fold kept for a test, ``external`` another cache,
        ``predicted`` what `aneurysm predict` was given.
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
    Read ``predictions_val.csv`` and ``folds.csv`` of a run, and, if they are there, ``config.toml``, ``init.json`` and
    ``metrics.csv``.

    Raises
    ------
    DataError
        There is no such run, it has no predictions yet, a file is damaged, or of other labels, or the predictions are
        not of the best checkpoint that is there.
    """
    root = Path(root)
    if problem := mistake(describe(root), Wanted.RUN):
        raise DataError(problem)
    path = root / "predictions_val.csv"
    if not path.exists():
        raise DataError(f"{root} has no predictions_val.csv: the run has not validated yet")
    folds = read_table(root / "folds.csv", ("series_uid", "patient_key", "fold"))
    keys = dict(zip(folds["series_uid"], folds["patient_key"], strict=True))
    rows = read_rows(path)
    if missing := [row.series_uid for row in rows if row.series_uid not in keys]:
        raise DataError(f"{root / 'folds.csv'} lacks {len(missing)} of the series predicted, {missing[0]} one")
    predictions = checked_predictions(path, rows, keys)
    text, config = _config(root / "config.toml")
    best = root / "checkpoints" / "best.ckpt"
    lineage = read_lineage(root / "init.json")
    epoch = _common(path, "epoch", [row.epoch for row in rows])
    if best.is_file() and epoch is not None:
        _check_epoch(best, epoch)
    return Run(
        root.resolve().name,
        root,
        config,
        text,
        predictions,
        candidates_of(rows),
        _epochs(root / "metrics.csv"),
        dict(zip(folds["series_uid"], folds["fold"].astype(int), strict=True)),
        checkpoint_digest(best) if best.is_file() else None,
        remark="" if lineage is None else lineage.describe(predictions.uids.tolist(), keys),
        part=_part(path, rows) or "val",
        digest=_common(path, "digest", [row.digest for row in rows]) or None,
    )


def read_predicted(path: str | Path, labels: str | Path, *, on_omission: Callable[[str], None] = lambda _: None) -> Run:
    """
    Read a table of predictions as a run of its own, which `aneurysm.report.evaluation.evaluate` takes.

    Parameters
    ----------
    path
        A .csv or .json file of `aneurysm predict --out`, or a run's ``predictions_val.csv``.
    labels
        The truth: a table as train.csv. Every series counts as a patient of its own.
    on_omission
        Called with what is left out: series without a prediction, and series without labels.

    Raises
    ------
    DataError
        A table is missing, damaged or of another version, or no series is in both.
    """
    path, labels = Path(path), Path(labels)
    if not labels.is_file():
        raise DataError(f"there is no table of labels {labels}")
    known = read_labels(labels)
    table = read_rows(path)
    predicted = [row for row in table if row.status == PREDICTED]
    rows = [
        replace(row, truth=dict(notes.labels or {}), modality=notes.modality)
        for row in predicted
        if (notes := known.get(row.series_uid)) is not None
    ]
    if failed := len(table) - len(predicted):
        on_omission(f"{failed} of {len(table)} series in {path} have no prediction, and are left out")
    if unknown := [row.series_uid for row in predicted if row.series_uid not in known]:
        on_omission(f"{len(unknown)} series in {path} have no labels in {labels}, and are left out: {unknown[0]} ...")
    if not rows:
        raise DataError(f"none of the {len(predicted)} series predicted in {path} has labels in {labels}")
    predictions = checked_predictions(path, rows, {})
    return Run(
        path.stem,
        path,
        {},
        "",
        predictions,
        candidates_of(rows),
        pd.DataFrame(),
        dict(zip(predictions.uids.tolist(), predictions.folds.tolist(), strict=True)),
        None,
        part=_part(path, rows) or "predicted",
        digest=_common(path, "digest", [row.digest for row in rows]) or None,
    )


def _common(path: Path, name: str, values: Sequence[_Value]) -> _Value:
    """Return what is the same for all series."""
    if len(set(values)) > 1:
        one, other = sorted(map(str, set(values)))[:2]
        raise DataError(f"{path}: its rows are of different {name}s, {one} and {other}")
    return values[0]


def _part(path: Path, rows: Sequence[PredictionRow]) -> str:
    part = _common(path, "part", [row.part for row in rows])
    if part not in ("", *PARTS):
        raise DataError(f"{path}: part is {part!r}, expected one of {', '.join(PARTS)}")
    return part


def _check_epoch(best: Path, epoch: int) -> None:
    """Refuse what a run leaves that ends between writing the two: weights, with the predictions of others."""
    from aneurysm.training.checkpoint import read_file

    seen = read_file(best).get("epoch")
    if seen != epoch:
        raise DataError(
            f"the predictions of {best.parent.parent} are of epoch {epoch}, its best.ckpt is of epoch {seen}: the run "
            "was ended between the two. Go on with it (aneurysm train --resume), or predict again (--fresh)"
        )


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.exists():
        return "", {}
    try:
        text = read_bounded(path, MOST_TOML).decode("utf-8")
        return text, parse_toml(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _epochs(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
