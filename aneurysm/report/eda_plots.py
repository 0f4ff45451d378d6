"""Histograms of the page about the data: one of a measure, the modalities on top of each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from aneurysm.report.eda_ages import AgeTable
from aneurysm.report.eda_geometry import Measure
from aneurysm.report.plot_style import BLUE, GREEN, MUTED, ORANGE, Plot, new_figure, styled

_COLOURS: Final = (BLUE, ORANGE, GREEN)
"""Of the first modalities; all others are one."""
_BINS: Final = 32
_MOST_SHARE: Final = 0.995
"""So much of the values is shown: a few that lie far out would leave all others one bar."""


def histogram(measure: Measure, values: Mapping[str, NDArray[np.float64]]) -> Plot | None:
    """Draw a measure of the series of each modality; None if there are no values."""
    named = {name: v for name, v in values.items() if len(v)}
    if not named:
        return None
    together = np.concatenate(list(named.values()))
    low, high = float(together.min()), float(np.quantile(together, _MOST_SHARE))
    beyond = int((together > high).sum())
    if beyond and (together.max() - low) < 1.5 * (high - low):
        high, beyond = float(together.max()), 0
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    # The colour of a modality is the same in all plots, also where another one has no values.
    rest = [name for name in list(values)[len(_COLOURS) :] if name in named]
    bars = {
        (name, colour): np.histogram(named[name], edges)[0]
        for name, colour in zip(values, _COLOURS, strict=False)
        if name in named
    }
    if rest:
        title = rest[0] if len(rest) == 1 else "others"
        bars[title, MUTED] = np.histogram(np.concatenate([named[name] for name in rest]), edges)[0]
    with styled(measure.name):
        figure = new_figure(4.2, 2.7)
        axes = figure.subplots()
        below = np.zeros(_BINS)
        for (name, colour), counts in bars.items():
            axes.bar(edges[:-1], counts, np.diff(edges), bottom=below, align="edge", color=colour, label=name)
            below += counts
        axes.set_xlabel(f"{measure.title}, {measure.unit}" if measure.unit else measure.title)
        axes.set_ylabel("series")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside upper left", ncols=4, fontsize=8)
    caption = f"n = {len(together):,} series" + (
        f"; {beyond:,} beyond {high:.{measure.digits}f} are not shown." if beyond else "."
    )
    return Plot(measure.name, measure.title, caption, figure)


def age_plot(table: AgeTable) -> Plot | None:
    """Draw the patients of each sex by age; None if there are no groups."""
    shown = {sex: groups for sex, groups in table.groups.items() if groups}
    if not shown:
        return None
    most = max(group.patients for groups in shown.values() for group in groups)
    with styled("ages"):
        figure = new_figure(4.2, 0.9 + 0.26 * max(len(groups) for groups in shown.values()))
        for axes, (sex, groups), colour in zip(
            np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), _COLOURS, strict=False
        ):
            axes.barh([str(g) for g in groups], [g.patients for g in groups], color=colour, height=0.75)
            axes.invert_yaxis()
            axes.set_xlim(0, 1.05 * most)
            axes.set_title(f"{sex}, n = {sum(g.patients for g in groups):,}")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
            axes.set_xlabel("patients")
            axes.grid(visible=False, axis="y")
    return Plot("ages", "Ages", f"n = {sum(g.patients for own in shown.values() for g in own):,} patients.", figure)
