"""base_rates(): checkpoints -> how frequent each label was in training, the answer where there can be no better."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS
from aneurysm.training.checkpoint import load_checkpoint


def base_rates(checkpoints: Sequence[str | Path]) -> dict[str, float]:
    """
    Return for each label the share of positives in the series that the models were trained on: the checkpoints' mean.

    Raises
    ------
    UsageError
        A checkpoint does not know them, or can't be read.
    """
    rates = []
    for path in checkpoints:
        known = load_checkpoint(path).prevalence
        if known is None:
            raise UsageError(
                f"{path} was written by an older version, which did not keep how frequent the labels are: "
                "there is nothing to fall back on"
            )
        values = [value for value in known if value is not None]
        if len(values) < len(LABELS):
            raise UsageError(
                f"{path}: {LABELS[known.index(None)]} was not known of any series that it was trained on: "
                "there is nothing to fall back on"
            )
        rates.append(values)
    return {label: sum(values) / len(rates) for label, values in zip(LABELS, zip(*rates, strict=True), strict=True)}
