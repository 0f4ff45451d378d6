"""
Slices that are none, although nothing in their headers says so: projections, scouts or other heads among the slices.

Their ImageType may have been stripped. Geometry raises the suspicion, pixels decide: a slice between two others that
are one gap apart, or one at an end of the stack, is left out if it is no neighbour of its neighbours. Where the slices
of a stack differ much from each other anyway, nothing is concluded: a slice of the head must not be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from aneurysm.dicom.content import Coarse, FrameContent, unlikeness
from aneurysm.dicom.frame import Frame
from aneurysm.dicom.geometry import slice_geometry

_ON_LATTICE: Final = 0.1
"""Share of the gap by which slices of an even stack may be off: rounded positions, and jitter of the table."""
_MANY: Final = 0.1
"""If more than this share of the slices, and more than three, are off, the stack is an uneven one."""
_LONGEST: Final = 3
"""How many slices next to each other are suspected."""
_BETWEEN: Final = 1.5
"""How many times more unlike its neighbours than they are unlike each other a slice between them must be."""
_NOISE: Final = 0.05
"""Slices that are less unlike each other differ by noise: five per cent of what two strange images do."""
_BEYOND: Final = 2.0
"""How many times more unlike its neighbours than any two neighbours in the stack a slice at an end must be."""
_STRANGE: Final = 0.3
"""... and how unlike at least: slices of a head at two heights that show little of the same."""
_SUSPECT: Final = 1.2
"""... and how many times more than those next to it before the rest of the stack is looked at."""
_PROJECTION: Final = 0.5
"""A projection is this much closer to that of the stack than to its neighbours; ordinary slices are at 0.7 or more."""
_NEAR: Final = 3
_SAMPLED: Final = 24
"""Slices of which the stack's projection is made for comparison."""
_SMALLEST: Final = 8


def slices_of_other_content(frames: Sequence[Frame], content: FrameContent) -> list[Frame]:
    """Return those of ``frames``, one for each position and in order, that are no slices of the stack."""
    if len(frames) < _SMALLEST:
        return []
    geometry, ordered = slice_geometry(frames)
    stack = _Stack(ordered, geometry.positions_mm.tolist(), geometry.slice_spacing_mm, content)
    suspects = stack.off_the_lattice()
    if sum(len(run) for run in suspects) > max(_LONGEST, _MANY * len(ordered)):
        suspects = []
    out = [i for run in suspects if all(stack.is_strange_between(i, run[0] - 1, run[-1] + 1) for i in run) for i in run]
    body = [i for i in range(len(ordered)) if i not in out]
    return [ordered[i] for i in sorted({*out, *stack.strange_end(body), *stack.strange_end(body[::-1])})]


class _Stack:
    """Slices in order, and how unlike they are."""

    def __init__(self, frames: list[Frame], heights: list[float], gap: float, content: FrameContent) -> None:
        self._frames, self._heights, self._gap, self._content = frames, heights, gap, content

    def off_the_lattice(self) -> list[range]:
        """Return runs of slices that lie where an even stack has none, between two others that it has."""
        runs: list[range] = []
        start = 1
        while start < len(self._frames) - 1:
            found = (range(start, start + n) for n in range(1, _LONGEST + 1) if start + n < len(self._frames))
            run = next((r for r in found if self._is_off(r)), None)
            if run is not None:
                runs.append(run)
            start = start + 1 if run is None else run.stop + 1
        return runs

    def _is_off(self, run: range) -> bool:
        low = self._heights[run[0] - 1]
        return _is_whole((self._heights[run[-1] + 1] - low) / self._gap, 4) and not any(
            _is_whole((self._heights[i] - low) / self._gap, 4) for i in run
        )

    def is_strange_between(self, i: int, before: int, after: int) -> bool:
        """Return True if slice ``i`` is no neighbour of the two that it lies between."""
        unlike = min(self._unlikeness(i, before), self._unlikeness(i, after))
        apart = self._unlikeness(before, after)
        if unlike <= _NOISE:
            return False
        others = [k for k in range(len(self._frames)) if k != i]
        return unlike > _BETWEEN * apart or self._to_projection(i, others) < _PROJECTION * unlike

    def strange_end(self, body: Sequence[int]) -> list[int]:
        """Return the slices at the beginning of ``body``, the indices of a stack from one end, that are not of it."""
        for n in range(_LONGEST, 0, -1):
            end, rest = body[:n], body[n:]
            if len(rest) >= _SMALLEST and all(self._is_strange_at_end(i, rest) for i in end):
                return list(end)
        return []

    def _is_strange_at_end(self, i: int, body: Sequence[int]) -> bool:
        gaps = max(1.0, abs(self._heights[i] - self._heights[body[0]]) / self._gap)
        unlike = min(self._unlikeness(i, k) for k in body[:_NEAR]) / gaps
        if unlike <= max(_NOISE, _SUSPECT * self._roughness(body[: _NEAR + 2])):
            return False
        if self._to_projection(i, body) < _PROJECTION * unlike:
            return True
        # The outer slices of a head hold less and less, until there is only noise: that is no sign of anything.
        faint = _size(self._content.coarse(self._frames[i])) < 0.5 * _size(self._content.coarse(self._frames[body[0]]))
        return not faint and unlike > max(_STRANGE, _BEYOND * self._roughness(body))

    def _roughness(self, indices: Sequence[int]) -> float:
        """Return how unlike two neighbours are at most, for a gap as wide as usual."""
        return max(
            self._unlikeness(a, b) / max(1.0, abs(self._heights[a] - self._heights[b]) / self._gap)
            for a, b in pairwise(indices)
        )

    def _to_projection(self, i: int, others: Sequence[int]) -> float:
        """Return how unlike slice ``i`` is to the maximum and to the mean of others, whichever is less."""
        picked = {others[int(k)] for k in np.linspace(0, len(others) - 1, min(_SAMPLED, len(others)))}
        known = [c for k in sorted(picked) if (c := self._content.coarse(self._frames[k])) is not None]
        here = self._content.coarse(self._frames[i])
        if here is None or not known:
            return 1.0
        return min(unlikeness(here, np.max(known, axis=0)), unlikeness(here, np.mean(known, axis=0)))

    def _unlikeness(self, a: int, b: int) -> float:
        return unlikeness(self._content.coarse(self._frames[a]), self._content.coarse(self._frames[b]))


def _is_whole(ratio: float, at_most: int) -> bool:
    return 1 <= round(ratio) <= at_most and abs(ratio - round(ratio)) < _ON_LATTICE


def _size(coarse: Coarse | None) -> float:
    return 0.0 if coarse is None else float(np.linalg.norm(coarse - coarse.min()))
