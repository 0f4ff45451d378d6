"""Evaluation -> figures."""

from __future__ import annotations

from aneurysm.report.curve_plots import curve_plots
from aneurysm.report.evaluation import Evaluation
from aneurysm.report.plot_style import Plot, styled
from aneurysm.report.score_plots import score_plots


def draw_plots(evaluation: Evaluation) -> list[Plot]:
    """Draw all that the evaluation has data for; those that stand alone in their row come last."""
    with styled():
        plots = curve_plots(evaluation) + score_plots(evaluation)
    return sorted(plots, key=lambda plot: plot.wide)
