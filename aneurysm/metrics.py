"""
The score of the RSNA 2025 competition, and what stands behind it: ROC-AUC and average precision by label and modality.

A label of which only positives or only negatives are known has no AUC. It is left out of the mean, and `Score.summary`
says so; counting it as 0.5 would pull every score of a small fold towards chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS, UNKNOWN


@dataclass(frozen=True)
class LabelScore:
    """
    One label.

    Attributes
    ----------
    n, n_positive
        How many series have the label known, and how many of these are positive.
    auc, average_precision
        From 0 to 1; None if only positives or only negatives are known.
    """

    label: str
    n: int
    n_positive: int
    auc: float | None
    average_precision: float | None


@dataclass(frozen=True)
class Score:
    """
    A set of series.

    Attributes
    ----------
    labels
        The 14, in the order of `LABELS`.
    by_modality
        The same for the series of each modality, if modalities were given.
    """

    labels: tuple[LabelScore, ...]
    by_modality: dict[str, Score] = field(default_factory=dict)

    @property
    def present_auc(self) -> float | None:
        """Of "Aneurysm Present"."""
        return self.labels[-1].auc

    @property
    def mean_site_auc(self) -> float | None:
        """The mean over the sites that have one; None if none has."""
        aucs = [s.auc for s in self.labels[:-1] if s.auc is not None]
        return float(np.mean(aucs)) if aucs else None

    @property
    def score(self) -> float | None:
        """0.5 * (AUC of present + mean AUC of the sites), as the competition's; None if one of the two is unknown."""
        present, sites = self.present_auc, self.mean_site_auc
        return None if present is None or sites is None else 0.5 * (present + sites)

    @property
    def left_out(self) -> tuple[LabelScore, ...]:
        """The labels that have no AUC."""
        return tuple(s for s in self.labels if s.auc is None)

    def summary(self) -> str:
        """Say it in a line, with all that was left out."""
        n_sites = sum(s.auc is not None for s in self.labels[:-1])
        text = (
            f"score {_text(self.score)}, AUC of present {_text(self.present_auc)}, "
            f"mean AUC of {n_sites} of {len(self.labels) - 1} sites {_text(self.mean_site_auc)}"
        )
        if self.left_out:
            names = ", ".join(f"{s.label} ({s.n_positive} of {s.n} positive)" for s in self.left_out)
            text += f"; left out, because all that is known is of one class: {names}"
        return text


def score_series(y_true: ArrayLike, y_score: ArrayLike, modalities: Sequence[str] | None = None) -> Score:
    """
    Score predictions of n series.

    Parameters
    ----------
    y_true
        (n, 14) in the order of `LABELS`: 0, 1, or 255 if not known, which leaves that series out of that label.
    y_score
        (n, 14), higher for positives; only their order counts.
    modalities
        n names, to score each modality by itself, too.

    Raises
    ------
    UsageError
        Shapes differ, or a value is none of these; a NaN means that the model has diverged.
    """
    true, scores = np.asarray(y_true), np.asarray(y_score, np.float64)
    if true.ndim != 2 or true.shape != scores.shape or true.shape[1] != len(LABELS):
        raise UsageError(
            f"labels of shape {true.shape} and predictions of {scores.shape}: expected (n, {len(LABELS)}) twice"
        )
    if wrong := sorted(set(np.unique(true).tolist()) - {0, 1, UNKNOWN}):
        raise UsageError(f"a label is {wrong[0]}: expected 0, 1 or {UNKNOWN}")
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise UsageError(f"the prediction of {LABELS[column]!r} in row {row} is {scores[row, column]}")
    by_modality = {}
    if modalities is not None:
        names = np.array(modalities, dtype=str)
        if names.shape != (len(true),):
            raise UsageError(f"{len(names)} modalities for {len(true)} series")
        by_modality = {str(m): Score(_labels(true[names == m], scores[names == m])) for m in np.unique(names)}
    return Score(_labels(true, scores), by_modality)


def _labels(true: NDArray[np.generic], scores: NDArray[np.float64]) -> tuple[LabelScore, ...]:
    return tuple(_label(name, true[:, i], scores[:, i]) for i, name in enumerate(LABELS))


def _label(name: str, true: NDArray[np.generic], scores: NDArray[np.float64]) -> LabelScore:
    # Here, not above: scikit-learn loads joblib.
    from sklearn.metrics import average_precision_score, roc_auc_score

    known = true != UNKNOWN
    positive, scores = true[known] == 1, scores[known]
    n, n_positive = len(positive), int(positive.sum())
    if n_positive in (0, n):
        return LabelScore(name, n, n_positive, None, None)
    auc, precision = roc_auc_score(positive, scores), average_precision_score(positive, scores)
    return LabelScore(name, n, n_positive, float(auc), float(precision))


def _text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
