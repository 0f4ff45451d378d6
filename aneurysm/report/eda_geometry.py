"""Header facts of series -> planes, matrices, and how far spacings, thickness and fields of view spread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # pydicom comes with them
    from aneurysm.precaching.header_facts import HeaderFacts

PLANES: Final = ("axial", "coronal", "sagittal")
_QUANTILES: Final = (0.0, 0.05, 0.5, 0.95, 1.0)
_MATRICES: Final = 10
"""The commonest ones; all others are one row."""


@dataclass(frozen=True)
class Measure:
    """Something that is measured of a series: its title, the unit, digits that are shown, and how to take it."""

    name: str
    title: str
    unit: str
    digits: int
    take: Callable[[HeaderFacts], float]
    plotted: bool = False


MEASURES: Final = (
    Measure("slice-distance", "Distance of slices", "mm", 2, lambda f: f.spacing_mm[0], plotted=True),
    Measure("thickness", "Slice thickness", "mm", 2, lambda f: f.thickness_mm, plotted=True),
    Measure("pixel", "Pixel, larger side", "mm", 3, lambda f: max(f.spacing_mm[1:]), plotted=True),
    Measure("field", "Field of view, larger side", "mm", 0, lambda f: max(f.field_mm), plotted=True),
    Measure("length", "First slice to last", "mm", 0, lambda f: f.length_mm, plotted=True),
    Measure("slices", "Slices", "", 0, lambda f: f.shape[0], plotted=True),
    Measure("matrix", "Matrix, larger side", "pixels", 0, lambda f: max(f.shape[1:])),
)
"""What is not known, as an absent slice thickness, is 0, and is left out."""


@dataclass(frozen=True)
class Spread:
    """Of n series: the least value, 5 %, median, 95 %, and the greatest."""

    n: int
    quantiles: tuple[float, ...]


def measured(measure: Measure, facts: Iterable[HeaderFacts]) -> NDArray[np.float64]:
    """Return a measure of the series that have it."""
    values = np.array([measure.take(f) for f in facts], np.float64)
    return values[values > 0]


def spread(values: NDArray[np.float64]) -> Spread | None:
    """Return how values spread; None if there are none."""
    if not len(values):
        return None
    return Spread(len(values), tuple(np.quantile(values, _QUANTILES).tolist()))


@dataclass(frozen=True)
class MatrixCounts:
    """The commonest matrices, "rows x columns", with their series, and how many others there are."""

    commonest: list[tuple[str, int]]
    others: int
    other_series: int


def matrix_counts(facts: Sequence[HeaderFacts]) -> MatrixCounts:
    """Count the matrices of series."""
    counts = Counter(f"{f.shape[1]} \N{MULTIPLICATION SIGN} {f.shape[2]}" for f in facts)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[_MATRICES:]
    return MatrixCounts(ordered[:_MATRICES], len(rest), sum(n for _, n in rest))
