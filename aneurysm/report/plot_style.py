"""How plots look, on paper and in the page: a figure drawn once becomes PNG, SVG, and SVG in the page's own colours."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2933", "#68727d", "#dfe3e8", "#fdfefe"
BLUE, ORANGE, GREEN = "#1f6fd6", "#d9720b", "#16895c"
"""Told apart by colour-blind readers, too."""

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--card",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
}
"""The page's colours, which differ between light and dark."""

SHORT: tuple[str, ...] = (
    "L infraclinoid ICA", "R infraclinoid ICA", "L supraclinoid ICA", "R supraclinoid ICA", "L MCA", "R MCA", "ACom",
    "L ACA", "R ACA", "L PCom", "R PCom", "Basilar tip", "Other posterior", "Present",
)  # fmt: skip
"""The labels, as short as a plot needs them."""

_STYLE: dict[str, Any] = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    # Text stays text: it can be searched, and takes the page's font.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    # A run may be called $x$.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Plot:
    """A figure, the name of its files, and what is said of it; ``wide`` figures don't stand beside others."""

    name: str
    title: str
    caption: str
    figure: Figure
    wide: bool = False


def styled(name: str = "") -> AbstractContextManager[None]:
    """Let figures look so, within the context; ``name`` makes the ids of SVG its own."""
    settings: Any = _STYLE | {"svg.hashsalt": name}
    return mpl.rc_context(settings)


def new_figure(width_in: float = 4.2, height_in: float = 3.6) -> Figure:
    """Return an empty figure; on a page, its points are about those of the text around it."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)  # registers itself with the figure; pyplot would keep every figure for good
    return figure


def unit_square(axes: Axes) -> None:
    """Let both axes run from 0 to 1, as long as each other."""
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")


def save(plot: Plot, folder: Path) -> str:
    """
    Write ``<name>.png`` and ``<name>.svg`` into ``folder``; return the SVG, for `inline_svg`.

    The same figure gives the same bytes.
    """
    text = svg_text(plot)
    with styled(plot.name):
        plot.figure.savefig(folder / f"{plot.name}.png", dpi=144, metadata={"Software": None})
    (folder / f"{plot.name}.svg").write_text(text, encoding="utf-8")
    return text


def svg_text(plot: Plot) -> str:
    """Return the figure as SVG, for `inline_svg`; its layout is settled from here on."""
    written = StringIO()
    with styled(plot.name):
        # The layout is worked out once; each file would do so twice.
        layout = plot.figure.get_layout_engine()
        if layout is not None:
            layout.execute(plot.figure)
            plot.figure.set_layout_engine("none")
        plot.figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()


def inline_svg(text: str, name: str, title: str) -> str:
    """
    Return a plot's SVG as an element to stand in a page.

    Its colours are the page's variables, so that it turns dark with the page; its ids begin with ``name``, so that
    those of several figures don't meet.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    # The size comes from the page, the shape from the viewBox.
    opening, rest = text.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{escape(title)}">{rest}'


def jpeg(figure: Figure) -> bytes:
    """Return the figure as a JPEG picture, for what is mostly grey voxels."""
    written = BytesIO()
    figure.savefig(written, format="jpg", dpi=110, pil_kwargs={"quality": 85})
    return written.getvalue()
