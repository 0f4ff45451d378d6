"""metrics.csv: a row per epoch; an epoch that is done again replaces its row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from aneurysm.csv_table import csv_text
from aneurysm.labels import LABELS
from aneurysm.metrics import Score
from aneurysm.processes.files import write_atomically

EpochRow = dict[str, float | int | None]
"""Values by column; None, which stands for what is undefined, is an empty field."""


class MetricsTable:
    """
    The rows so far, and their file.

    Parameters
    ----------
    path
        Of the file; its rows up to ``done`` are kept.
    terms
        Of the loss.
    modalities
        Of the held-out series.
    done
        Epochs that the run has behind it; rows of later ones are of a future that was lost with a crash.
    """

    def __init__(self, path: Path, terms: Sequence[str], modalities: Sequence[str], done: int) -> None:
        self.path = path
        self.columns = [
            "epoch", "step", "loss", *(f"loss: {term}" for term in terms), "learning_rate", "patches_per_s",
            "idle_share", "train_s", "val_s", "score", "present_auc", "site_auc", *(f"auc: {name}" for name in LABELS),
            *(f"ap: {name}" for name in LABELS), *(f"present_auc: {m}" for m in modalities),
            *(f"site_auc: {m}" for m in modalities),
        ]  # fmt: skip
        self._rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= done]

    def add(self, row: EpochRow) -> None:
        """Add an epoch, or replace it, and write the file, whole."""
        text = {name: "" if value is None else f"{value:.6g}" for name, value in row.items() if name in self.columns}
        text["epoch"] = str(row["epoch"])
        text["step"] = str(row["step"])
        self._rows = [r for r in self._rows if int(r["epoch"]) < int(text["epoch"])] + [text]
        write_atomically(self.path, csv_text(self.columns, self._rows))


def score_row(score: Score) -> EpochRow:
    """Return the columns of a score."""
    row: EpochRow = {"score": score.score, "present_auc": score.present_auc, "site_auc": score.mean_site_auc}
    for label in score.labels:
        row[f"auc: {label.label}"] = label.auc
        row[f"ap: {label.label}"] = label.average_precision
    for modality, part in score.by_modality.items():
        row[f"present_auc: {modality}"] = part.present_auc
        row[f"site_auc: {modality}"] = part.mean_site_auc
    return row
