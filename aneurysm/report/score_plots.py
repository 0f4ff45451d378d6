"""AUC by label, calibration, histograms, confusion matrices and the course of training."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from aneurysm.labels import LABELS
from aneurysm.report.evaluation import Evaluation
from aneurysm.report.plot_style import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    SHORT,
    Plot,
    new_figure,
    unit_square,
)
from aneurysm.report.ranking import PRESENT

_RELIABILITY_BINS = 10


def score_plots(e: Evaluation) -> list[Plot]:
    """Draw what is not a curve, as far as there is data."""
    made = (_auc_by_label(e), _calibration(e), _histogram(e), _training(e), _confusion(e), _site_confusion(e))
    return [plot for plot in made if plot is not None]


def _auc_by_label(e: Evaluation) -> Plot:
    figure = new_figure(4.2, 4.4)
    axes = figure.subplots()
    for row, label in enumerate(reversed(e.ranking.labels)):
        colour = ORANGE if label.label == LABELS[PRESENT] else BLUE
        auc = label.auc
        if auc.value is None:
            axes.text(0.52, row, "one class only", va="center", fontsize=8, color=MUTED)
            continue
        if auc.low is not None and auc.high is not None:
            axes.plot([auc.low, auc.high], [row, row], color=colour, solid_capstyle="round")
        axes.plot(auc.value, row, "o", color=colour, markersize=5)
    axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    counts = [f"{s}  ({x.n_positive})" for s, x in zip(SHORT, e.ranking.labels, strict=True)]
    axes.set_yticks(range(len(LABELS)), labels=counts[::-1])
    lows = [x.auc.low if x.auc.low is not None else x.auc.value for x in e.ranking.labels]
    axes.set_xlim(min([0.45, *(v for v in lows if v is not None)]) - 0.02, 1.01)
    axes.set_xlabel("ROC-AUC, 95 % interval")
    axes.set_title("ROC-AUC (positives)")
    return Plot("auc", "ROC-AUC by label", "Bars are 95 % intervals by patient (Newcombe); 0.5 is chance.", figure)


def _calibration(e: Evaluation) -> Plot | None:
    if e.calibration is None or e.ranking.labels[PRESENT].one_class:
        return None
    figure = new_figure()
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    known = e.predictions.known(PRESENT)
    positive = e.predictions.positive(PRESENT)[known]
    found = e.calibration.labels[PRESENT]
    cases = [("as predicted", ORANGE, e.predictions.probabilities[known, PRESENT], found.ece_before)]
    if found.temperature is not None:
        cases.append(("calibrated", BLUE, e.calibration.probabilities[known, PRESENT], found.ece_after))
    for name, colour, probabilities, error in cases:
        x, y, low, high = _reliability(positive, probabilities)
        axes.errorbar(
            x, y, [y - low, high - y], color=colour, marker="o", markersize=4, linewidth=1.4, elinewidth=1,
            label=f"{name}: ECE {error.value:.3f}",
        )  # fmt: skip
    unit_square(axes)
    axes.set_xlabel("Mean probability of the bin")
    axes.set_ylabel("Share of positives")
    axes.set_title("Calibration of present")
    axes.legend(loc="upper left")
    caption = (
        "Ten bins of equally many series, with Wilson intervals. Temperatures come from the other half of the patients."
    )
    return Plot("calibration", "Calibration", caption, figure)


def _histogram(e: Evaluation) -> Plot:
    figure = new_figure(4.2, 4.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    bins = np.linspace(0, 1, 31).tolist()
    known = e.predictions.known(PRESENT)
    positive, scores = e.predictions.positive(PRESENT)[known], e.predictions.probabilities[known, PRESENT]
    sites, site_scores = e.predictions.truth[:, :PRESENT], e.predictions.probabilities[:, :PRESENT]
    panels = (
        (upper, "Present", scores[~positive], scores[positive]),
        (lower, "All sites", site_scores[sites == 0], site_scores[sites == 1]),
    )
    for axes, name, negatives, positives in panels:
        axes.hist(negatives, bins, color=BLUE, alpha=0.35, label=f"negative ({len(negatives)})")
        axes.hist(positives, bins, color=ORANGE, histtype="step", linewidth=1.6, label=f"positive ({len(positives)})")
        axes.set_title(name)
        axes.legend(loc="upper center")
    upper.set_ylabel("Series")
    lower.set_yscale("symlog", linthresh=1)
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    lower.set_ylabel("Series x sites (log)")
    lower.set_xlabel("Score")
    return Plot(
        "histogram",
        "Scores by truth",
        "Of the labels that are known; that of the sites has a logarithmic scale.",
        figure,
    )


def _confusion(e: Evaluation) -> Plot:
    figure = new_figure(7.2, 7.4)
    grid = figure.subplots(4, 4)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, i in zip(grid.flat, (PRESENT, *range(PRESENT)), strict=False):
        counts = e.operation.labels[i].counts
        axes.set_title(SHORT[i], fontsize=8)
        if counts is None:
            # As large as a matrix, or the layout would crush its square to a line of text.
            axes.set_aspect("equal")
            axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, edgecolor=GRID))
            axes.text(0.5, 0.5, "no threshold", ha="center", va="center", fontsize=8, color=MUTED)
            continue
        cells = np.array([[counts.true_positive, counts.false_negative], [counts.false_positive, counts.true_negative]])
        _matrix(axes, cells, ("found", "not"), ("aneurysm", "none"), fontsize=9)
    caption = (
        "Rows are the truth, columns the decision with the threshold chosen on the other half of the patients; "
        "shades are shares of the row."
    )
    return Plot("confusion", "Confusion matrices", caption, figure, wide=True)


def _site_confusion(e: Evaluation) -> Plot | None:
    known = (e.predictions.truth[:, :PRESENT] <= 1).all(axis=1)
    single = known & ((e.predictions.truth[:, :PRESENT] == 1).sum(axis=1) == 1)
    if not single.any():
        return None
    true = e.predictions.truth[single, :PRESENT].argmax(axis=1)
    first = e.predictions.probabilities[single, :PRESENT].argmax(axis=1)
    cells = np.zeros((PRESENT, PRESENT), int)
    np.add.at(cells, (true, first), 1)
    figure = new_figure(6.4, 5.6)
    axes = figure.subplots()
    _matrix(axes, cells, SHORT[:PRESENT], SHORT[:PRESENT], fontsize=8)
    for text in axes.get_xticklabels():
        text.set(rotation=55, ha="right", rotation_mode="anchor")
    axes.set_xlabel("Site with the highest score")
    axes.set_ylabel("Site of the aneurysm")
    right = float((true == first).mean())
    caption = (
        f"The {int(single.sum())} series with an aneurysm at one site; of {right:.0%} the highest site score is the "
        "right one. Shades are shares of the row; right taken for left, or left for right, stands beside the diagonal."
    )
    return Plot("site_confusion", "Which site is taken for which", caption, figure, wide=True)


def _training(e: Evaluation) -> Plot | None:
    runs = [r.run for r in e.runs if {"epoch", "loss"} <= set(r.run.epochs.columns) and len(r.run.epochs)]
    if not runs:
        return None
    figure = new_figure(4.2, 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    styles: list[tuple[str, str]] = [(c, s) for s in ("-", "--", ":") for c in (BLUE, ORANGE, GREEN, MUTED, INK)]
    for run, (colour, line) in zip(runs, cycle(styles), strict=False):
        table = run.epochs
        # A line of one point is nothing to see.
        dot = "o" if table["loss"].notna().sum() == 1 else ""
        upper.plot(
            table["epoch"], table["loss"], color=colour, linestyle=line, linewidth=1.4, marker=dot, markersize=4,
            label=_short(run.name),
        )  # fmt: skip
        if "score" in table and table["score"].notna().any():
            scored = table[table["score"].notna()]
            lower.plot(scored["epoch"], scored["score"], ".", color=colour, linestyle=line, linewidth=1.4)
    upper.set_ylabel("Loss in training")
    lower.set_ylabel("Score on held-out")
    lower.set_xlabel("Epoch")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    upper.legend(loc="upper right", facecolor=PAPER)
    caption = "Scores are of whole held-out series. The best epoch was picked by it, so that it is a little too good."
    if e.part != "val":
        caption = f"Scores are of what was held out in training, which picked the best epoch, not of these {e.series}."
    return Plot("training", "Training", caption, figure)


def _short(name: str, longest: int = 32) -> str:
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def _reliability(positive: NDArray[np.bool_], p: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    order = np.argsort(p, kind="stable")
    bins = [b for b in np.array_split(order, min(_RELIABILITY_BINS, max(1, len(p) // 5))) if len(b)]
    n = np.array([len(b) for b in bins], float)
    x, y = np.array([p[b].mean() for b in bins]), np.array([positive[b].mean() for b in bins])
    z = 1.96
    middle = (y + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(y * (1 - y) / n + z**2 / (4 * n**2))
    return x, y, np.minimum(middle - half, y), np.maximum(middle + half, y)


def _matrix(
    axes: Axes, cells: NDArray[np.int64], columns: tuple[str, ...], rows: tuple[str, ...], fontsize: float
) -> None:
    axes.set_axis_on()
    axes.grid(visible=False)
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    # Squares rather than an image: SVG would hold that as pixels, which can't turn dark with the page.
    for row, column in np.ndindex(cells.shape):
        if shares[row, column] > 0:
            box = Rectangle(
                (column - 0.5, row - 0.5), 1, 1, color=BLUE, alpha=0.08 + 0.6 * shares[row, column], linewidth=0
            )
            axes.add_patch(box)
        if cells[row, column] or len(cells) == 2:
            axes.text(column, row, str(cells[row, column]), ha="center", va="center", fontsize=fontsize)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(len(columns)), labels=columns, fontsize=min(fontsize, 8))
    axes.set_yticks(range(len(rows)), labels=rows, fontsize=min(fontsize, 8))
    axes.tick_params(length=0)
