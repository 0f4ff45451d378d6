"""Run: what `aneurysm train` left in a run's folder about its held-out series, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from aneurysm.documents import MOST_TOML, parse_toml, read_bounded
from aneurysm.errors import DataError
from aneurysm.inference.calibration import checkpoint_digest
from aneurysm.inputs import Wanted, describe, mistake
from aneurysm.report.run_tables import Candidates, Predictions, checked_predictions, read_candidates, read_table
from aneurysm.training.lineage import read_lineage

PARTS = {"val": "held-out series", "test": "series of a test fold", "external": "external series"}
"""Of which series predictions are, and how the report calls them; see `aneurysm.training.validation.ValidationPart`."""


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
        What was predicted anew (see `aneurysm.report.repredict`); empty if these are the predictions of training.
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
    if problem := mistake(describe(root), Wanted.RUN):
        raise DataError(problem)
    if not (root / "predictions_val.csv").exists():
        raise DataError(f"{root} has no predictions_val.csv: the run has not validated yet")
    folds = read_table(root / "folds.csv", ("series_uid", "patient_key", "fold"))
    path = root / "predictions_val.csv"
    table = read_table(path, ("series_uid", "modality", "fold"))
    predictions, about = checked_predictions(path, table, folds), _about(path, table)
    text, config = _config(root / "config.toml")
    best = root / "checkpoints" / "best.ckpt"
    lineage = read_lineage(root / "init.json")
    keys = dict(zip(folds["series_uid"], folds["patient_key"], strict=True))
    if best.is_file() and about["epoch"]:
        _check_epoch(best, about["epoch"])
    return Run(
        root.resolve().name,
        root,
        config,
        text,
        predictions,
        read_candidates(root / "candidates_val.csv", set(predictions.uids.tolist())),
        _epochs(root / "metrics.csv"),
        dict(zip(folds["series_uid"], folds["fold"].astype(int), strict=True)),
        checkpoint_digest(best) if best.is_file() else None,
        remark="" if lineage is None else lineage.describe(predictions.uids.tolist(), keys),
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
