"""Sample -> JPEG: a stored slice in mm, the sides of the patient at its edges, circles about its marked points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from aneurysm.report.marks import PAPER, add_circle, add_letters
from aneurysm.report.plot_style import jpeg, new_figure, styled
from aneurysm.report.views import letter

if TYPE_CHECKING:  # pydicom comes with it
    from aneurysm.annotations.marked_slice import MarkedSlice

_EDGE_IN: Final = 3.0
_LETTERS_IN: Final = 0.5
_LEAST_SHARE: Final = 0.3
"""Of the edge: a picture that is narrower would be no picture."""


def draw_sample(image: MarkedSlice) -> bytes:
    """Return a slice as a JPEG picture, its first row on top, as it is stored."""
    rows, columns = image.grey.shape
    height, width = rows * image.spacing_mm[0], columns * image.spacing_mm[1]
    sides = [max(side / max(height, width), _LEAST_SHARE) * _EDGE_IN + _LETTERS_IN for side in (width, height)]
    right, down = np.array(image.right), np.array(image.down)
    with styled():
        figure = new_figure(*sides)
        figure.set_facecolor(PAPER)
        axes = figure.subplots()
        extent = (0.0, width, height, 0.0)
        axes.imshow(image.grey, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bilinear")
        for _, column, row in image.points:
            # Pixel centres lie half a pixel inside the edge.
            add_circle(axes, (column + 0.5) * image.spacing_mm[1], (row + 0.5) * image.spacing_mm[0], near=True)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        add_letters(axes, (letter(-right), letter(right), letter(-down), letter(down)))
    return jpeg(figure)  # outside of the style, whose paper is that of plots
