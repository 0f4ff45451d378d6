"""Marks and letters on grey pictures of volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

INK, PAPER = "white", "black"
LESION_COLOUR = "#ffd21e"
CANDIDATE_COLOUR = "#38d6ff"
LESION_RADIUS_MM = 6.0
LESION_DASHES = (0, (2, 2))
SCALE_BAR_MM = 20.0
_LETTER_COLOUR = "#7fd4ff"
_CROSS_MM = (3.0, 8.0)
# With a dark rim, or they are lost on bone.
_RIM = [withStroke(linewidth=2.6, foreground=PAPER)]


def add_circle(axes: Axes, x: float, y: float, *, near: bool) -> None:
    """Draw a lesion's circle about (x, y), in mm of the picture; dashed if it is not ``near`` what is shown."""
    t = np.linspace(0, 2 * np.pi, 61)
    axes.plot(
        x + LESION_RADIUS_MM * np.cos(t),
        y + LESION_RADIUS_MM * np.sin(t),
        color=LESION_COLOUR,
        linewidth=1.2,
        linestyle="-" if near else LESION_DASHES,
        alpha=1.0 if near else 0.6,
        path_effects=_RIM,
    )


def add_scale_bar(axes: Axes, width_mm: float, height_mm: float) -> None:
    """Draw a bar of 20 mm into the lower right corner of a picture of that size."""
    right, bottom = 0.96 * width_mm, height_mm - min(6.0, 0.1 * height_mm)
    axes.plot([right - SCALE_BAR_MM, right], [bottom, bottom], color=INK, linewidth=2.5, path_effects=_RIM)
    write(axes, right - SCALE_BAR_MM / 2, bottom - 1.5, f"{SCALE_BAR_MM:g} mm", INK, fontsize=8, ha="center")


def add_cross(axes: Axes, x: float, y: float, *, near: bool) -> None:
    """Draw a candidate's cross hairs about (x, y), open in the middle; unlike a circle also without its colour."""
    inner, outer = _CROSS_MM
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        axes.plot(
            [x + dx * inner, x + dx * outer],
            [y + dy * inner, y + dy * outer],
            color=CANDIDATE_COLOUR,
            linewidth=1.6,
            linestyle="-" if near else (0, (1.2, 1.2)),
            alpha=1.0 if near else 0.6,
            path_effects=_RIM,
        )


def add_letters(axes: Axes, letters: tuple[str, str, str, str]) -> None:
    """Write the sides of the patient at the left, right, top and bottom edge."""
    # Beside the picture, not in it: a stack of a few slices, seen from the side, is narrower than a letter.
    places = ((0.0, 0.5), (1.0, 0.5), (0.5, 1.0), (0.5, 0.0))
    alignments = (("right", "center"), ("left", "center"), ("center", "bottom"), ("center", "top"))
    for text, place, (horizontal, vertical) in zip(letters, places, alignments, strict=True):
        written = write(axes, *place, f" {text} ", _LETTER_COLOUR, fontsize=12, ha=horizontal, va=vertical)
        written.set_transform(axes.transAxes)


def write(axes: Axes, x: float, y: float, text: str, colour: str, **style: Any) -> Text:
    """Write on a picture."""
    defaults: dict[str, Any] = {"fontsize": 9, "fontweight": "bold", "color": colour, "path_effects": _RIM}
    return axes.text(x, y, text, **(defaults | style))
