"""ROC, precision-recall and FROC curves, of present and of each site, with bands by patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from aneurysm.report.bootstrap import ranked_samples
from aneurysm.report.evaluation import Evaluation
from aneurysm.report.froc import RATES, Froc
from aneurysm.report.plot_style import BLUE, MUTED, ORANGE, SHORT, Plot, new_figure, unit_square
from aneurysm.report.ranking import PRESENT

_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class _Bands:
    """(2, grid) each: 95 % intervals of sensitivity by false-positive rate, and of precision by sensitivity."""

    roc: NDArray[np.float64]
    precision: NDArray[np.float64]


def curve_plots(e: Evaluation) -> list[Plot]:
    """Draw ROC, precision-recall and FROC curves, of present and of each site, as far as there is data."""
    bands = {i: _bands(e, i) for i, label in enumerate(e.ranking.labels) if not label.one_class}
    plots = [_froc(e)] if e.froc is not None else []
    if PRESENT in bands:
        plots = [_roc(e, bands[PRESENT]), _precision_recall(e, bands[PRESENT]), *plots]
    return [*plots, _roc_sites(e, bands), _precision_recall_sites(e, bands)]


def _caption(bands: _Bands | None) -> str:
    return "Too few series for a 95 % interval." if bands is None else "The band is the 95 % interval by patient."


def _roc(e: Evaluation, bands: _Bands | None) -> Plot:
    from sklearn.metrics import roc_curve

    data = _label_data(e, PRESENT)
    assert data is not None
    figure = new_figure()
    axes = figure.subplots()
    fpr, tpr, _ = roc_curve(*data)
    if bands is not None:
        axes.fill_between(_GRID, *bands.roc, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(fpr, tpr, color=BLUE, label=f"Present: {e.ranking.present_auc}")
    mean = [np.interp(_GRID, *roc_curve(*d)[:2]) for i in range(PRESENT) if (d := _label_data(e, i)) is not None]
    if mean:
        axes.plot(_GRID, np.mean(mean, axis=0), color=ORANGE, label=f"Mean of sites: {e.ranking.site_auc}")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    unit_square(axes)
    axes.set_xlabel("False-positive rate (1 - specificity)")
    axes.set_ylabel("Sensitivity")
    axes.set_title("ROC")
    axes.legend(loc="lower right")
    return Plot("roc", "ROC curve", _caption(bands), figure)


def _precision_recall(e: Evaluation, bands: _Bands | None) -> Plot:
    from sklearn.metrics import precision_recall_curve

    data = _label_data(e, PRESENT)
    assert data is not None
    figure = new_figure()
    axes = figure.subplots()
    precision, recall, _ = precision_recall_curve(*data)
    if bands is not None:
        axes.fill_between(_GRID, *bands.precision, color=BLUE, alpha=0.2, linewidth=0)
    label = e.ranking.labels[PRESENT]
    axes.step(recall, precision, color=BLUE, where="post", label=f"Present: AP {label.average_precision}")
    share = float(data[0].mean())
    axes.axhline(share, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), label=f"prevalence {share:.3f}")
    unit_square(axes)
    axes.set_xlabel("Sensitivity (recall)")
    axes.set_ylabel("Precision")
    axes.set_title("Precision and recall")
    axes.legend(loc="lower left")
    return Plot("precision_recall", "Precision-recall curve", _caption(bands), figure)


def _roc_sites(e: Evaluation, bands: dict[int, _Bands | None]) -> Plot:
    from sklearn.metrics import roc_curve

    def draw(axes: Axes, i: int, positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
        fpr, tpr, _ = roc_curve(positive, scores)
        if (band := bands[i]) is not None:
            axes.fill_between(_GRID, *band.roc, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(fpr, tpr, color=BLUE, linewidth=1.4)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.text(0.97, 0.05, f"{e.ranking.labels[i].auc.value:.3f}", ha="right", fontsize=8.5)

    figure = _by_site(e, draw)
    figure.supxlabel("False-positive rate", fontsize=9)
    figure.supylabel("Sensitivity", fontsize=9)
    caption = "With the area under the curve, and 95 % intervals where that has one."
    return Plot("roc_sites", "ROC of each site", caption, figure, wide=True)


def _precision_recall_sites(e: Evaluation, bands: dict[int, _Bands | None]) -> Plot:
    from sklearn.metrics import precision_recall_curve

    def draw(axes: Axes, i: int, positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> None:
        precision, recall, _ = precision_recall_curve(positive, scores)
        if (band := bands[i]) is not None:
            axes.fill_between(_GRID, *band.precision, color=BLUE, alpha=0.2, linewidth=0)
        axes.step(recall, precision, color=BLUE, linewidth=1.4, where="post")
        axes.axhline(float(positive.mean()), color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.text(0.97, 0.9, f"{e.ranking.labels[i].average_precision.value:.3f}", ha="right", fontsize=8.5)

    figure = _by_site(e, draw)
    figure.supxlabel("Sensitivity (recall)", fontsize=9)
    figure.supylabel("Precision", fontsize=9)
    caption = (
        "With the average precision, and 95 % intervals where the area under the ROC curve has one; the dashed line "
        "is the prevalence."
    )
    return Plot("precision_recall_sites", "Precision-recall of each site", caption, figure, wide=True)


def _froc(e: Evaluation) -> Plot:
    assert e.froc is not None
    figure = new_figure()
    axes = figure.subplots()
    if e.froc.band.size:
        low, high = e.froc.band
        axes.fill_between(e.froc.grid, low, high, color=BLUE, alpha=0.2, linewidth=0, step="post")
    _froc_curve(axes, e.froc, BLUE, "anywhere")
    if e.froc_same_site is not None:
        _froc_curve(axes, e.froc_same_site, ORANGE, "and site right", (0, (4, 1.5)))  # the other may lie below it
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.125, 16)
    axes.set_xticks([0.125, *RATES, 16], labels=["1/8", "1/4", "1/2", "1", "2", "4", "8", "16"])
    axes.minorticks_off()
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel("False positives per scan")
    axes.set_ylabel("Sensitivity for lesions")
    axes.set_title(f"FROC, match within {e.options.match_radius_mm:g} mm")
    axes.legend(loc="lower right")
    band = (
        "the band holds 95 % of bootstrap samples of patients, point by point"
        if e.froc.band.size
        else "too few patients for a band"
    )
    caption = (
        f"{e.froc.n_lesions} lesions in {e.froc.n_scans} scans; {band}. The curve ends where the model named no more "
        "candidates."
    )
    return Plot("froc", "FROC", caption, figure)


def _froc_curve(axes: Axes, curve: Froc, colour: str, name: str, line: Any = "-") -> None:
    x, y = np.r_[1e-3, curve.false_positives], np.r_[0.0, curve.sensitivity]
    dot = "o" if len(x) == 2 else ""  # a curve of one point is nothing to see
    label = f"{name}: mean {curve.mean.value:.3f}"
    axes.step(x, y, color=colour, where="post", linestyle=line, marker=dot, markersize=4, label=label)


def _by_site(e: Evaluation, draw: Callable[[Axes, int, NDArray[np.bool_], NDArray[np.float64]], None]) -> Figure:
    figure = new_figure(7.2, 7.0)
    grid = figure.subplots(4, 4, sharex=True, sharey=True)
    for axes in grid.flat[PRESENT:]:
        axes.set_axis_off()
    for i, axes in enumerate(grid.flat[:PRESENT]):
        data = _label_data(e, i)
        unit_square(axes)
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
        axes.set_title(SHORT[i], fontsize=8.5)
        if data is None:
            axes.text(0.5, 0.5, "one class only", ha="center", va="center", fontsize=8, color=MUTED)
        else:
            draw(axes, i, *data)
    return figure


def _bands(e: Evaluation, i: int) -> _Bands | None:
    if e.ranking.labels[i].auc.low is None:
        return None
    p, known = e.predictions, e.predictions.known(i)
    drawn = ranked_samples(p.positive(i)[known], p.probabilities[known, i], e.weights, known)
    usable = (drawn.positives > 0) & (drawn.negatives > 0)
    roc, precision = (np.percentile(v[usable], [2.5, 97.5], axis=0) for v in (drawn.roc(_GRID), drawn.precision(_GRID)))
    return _Bands(roc, precision)


def _label_data(e: Evaluation, i: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    if e.ranking.labels[i].one_class:
        return None
    known = e.predictions.known(i)
    return e.predictions.positive(i)[known], e.predictions.probabilities[known, i]
