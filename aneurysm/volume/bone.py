"""Stored voxels of CT -> which cells of about 2 mm hold bone: what hides vessels in a projection.

Contrast in vessels (200 to 500 HU, in thin ones of a strong bolus 700) is as bright as spongy bone (300 to 700 HU), and
runs through the skull base and along it. A threshold that finds all bone takes every vessel that touches the skull, as
far as it goes. So bone is found by what is beyond doubt, and from there over short distances only:

1. The *core* is what is above 700 HU in the mean of a cell, in pieces of at least 1 cm³: plaques, clips and coils are
   smaller.
2. It grows by 4 mm into cells above 350 HU: spongy bone, which lies within a shell of core. A vessel is lost where it
   runs within these 4 mm, and not beyond.
3. What it encloses is closed: a piece above 350 HU of which less than half of the cells touch soft tissue. Of vessels,
   which are thin, nearly all do. Neither canals of nerves nor air cells are filled.
4. It is dilated by 2 mm into cells with a voxel above 200 HU: the rim, whose voxels are bone in part.

benchmarks/RESULTS.md says how much of the vessels that takes. The carotid within the skull base goes with the bone that
it runs in: `labels/bone` is for looking past the skull, and no reason to leave out a voxel that a model is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.types import Triple
from aneurysm.volume.blocks import Bits
from aneurysm.volume.cells import CELL_MM, cell_edge, cells_shape, fold
from aneurysm.volume.intensity import Intensity

BONE_VERSION: Final = 1
"""Of `find_bone`. Raise it when other cells come out: `aneurysm verify --fix` then brings caches up to it."""
_CORE_HU: Final = 700.0
_SPONGY_HU: Final = 350.0
_RIM_HU: Final = 200.0
_MOST_EXPOSED: Final = 0.5
_LEAST_MM3: Final = 1000.0
_SPONGY_STEPS: Final = 2
"""Cells, of `CELL_MM` each."""
_CLIP_ABOVE_HU: Final = 900.0
"""Where a spec clips below that, a cell of which a part is bone does not get beyond `_CORE_HU`."""
_WIDEST_STEP_HU: Final = 50.0


@dataclass(frozen=True)
class BoneCells:
    """Which cells of ``edge`` voxels hold bone: a bool array of one element a cell along (z, y, x)."""

    edge: Triple
    cells: Bits


def bone_problem(intensity: Intensity) -> str:
    """Return why bone can't be told in voxels that are stored so; empty if it can."""
    low, high = intensity.clip
    if intensity.unit != "HU":
        return "only CT has HU, which tell bone"
    if low > _RIM_HU or high < _CLIP_ABOVE_HU:
        return (
            f"the spec keeps {low:g} to {high:g} HU; to tell bone from contrast, at least {_RIM_HU:g} to "
            f"{_CLIP_ABOVE_HU:g} HU are needed"
        )
    if intensity.scale > _WIDEST_STEP_HU:
        return f"the spec keeps steps of {intensity.scale:.3g} HU; to tell bone, at most {_WIDEST_STEP_HU:g} will do"
    return ""


def find_bone(voxels: NDArray[Any], intensity: Intensity, spacing_mm: tuple[float, float, float]) -> BoneCells | None:
    """
    Return where bone is in ``voxels`` (z, y, x), stored integers; None if they can't tell: see `bone_problem`.

    All of it is integer arithmetic, so that the same voxels give the same cells everywhere.

    Parameters
    ----------
    voxels, intensity
        The volume, and what its integers mean.
    spacing_mm
        Of the voxels, (z, y, x).
    """
    if bone_problem(intensity):
        return None
    edge = cell_edge(voxels.shape, spacing_mm)
    filled = _to_whole_cells(voxels, edge)
    sums = fold(np.add, filled, edge, np.int32)
    count = edge[0] * edge[1] * edge[2]
    cell_mm = [s * e for s, e in zip(spacing_mm, edge, strict=True)]
    core = _large_pieces(_above(sums, _CORE_HU, intensity, count), round(_LEAST_MM3 / float(np.prod(cell_mm))))
    if not core.any():
        return BoneCells(edge, core)
    # A step is a cell. Where cells are far longer than they should be, the next one lies too far away.
    axes = [axis for axis in range(3) if cell_mm[axis] < 2 * CELL_MM]
    spongy = _above(sums, _SPONGY_HU, intensity, count)
    bone = core
    for _ in range(_SPONGY_STEPS):
        bone = bone | (_spread(bone, axes) & spongy)
    bone = bone | _enclosed(spongy & ~bone, ~spongy & ~bone, axes)
    rim = _above(fold(np.maximum, filled, edge), _RIM_HU, intensity, 1)
    return BoneCells(edge, bone | (_spread(bone, axes) & rim))


def _to_whole_cells(voxels: NDArray[Any], edge: Triple) -> NDArray[Any]:
    """Fill up what cells lack at the far faces with the last voxels."""
    shape = cells_shape(voxels.shape, edge)
    missing = [(0, n * e - m) for n, e, m in zip(shape, edge, voxels.shape, strict=True)]
    return np.pad(voxels, missing, mode="edge") if any(map(any, missing)) else voxels


def _above(sums: NDArray[Any], hu: float, intensity: Intensity, count: int) -> Bits:
    """Return where the mean of ``count`` stored integers, of which ``sums`` are given, is above ``hu``."""
    # As whole numbers: the sum is above the limit just where it is above the next lower whole one.
    return np.asarray(sums > int(np.floor((hu - intensity.offset) / intensity.scale * count)))


def _large_pieces(bits: Bits, least: int) -> Bits:
    """Return what of ``bits`` is in pieces of ``least`` cells, which touch by corners, too."""
    from scipy import ndimage  # here, not above: it takes a while to load, and to read a label does without it

    numbers, count = ndimage.label(bits, np.ones((3, 3, 3), bool))
    return _chosen(bits, numbers, _sizes(numbers, bits, count) >= max(1, least))


def _sizes(numbers: NDArray[np.int32], among: Bits, count: int) -> NDArray[np.int64]:
    """Return how many cells ``among`` those given each of ``count`` pieces has, by its number; 0 is no piece."""
    # Of few cells: counting all of them takes longer than finding the pieces.
    return np.bincount(numbers[among], minlength=count + 1)


def _chosen(bits: Bits, numbers: NDArray[np.int32], chosen: Bits) -> Bits:
    """Return those of ``bits`` whose piece is ``chosen``, by its number."""
    out = np.zeros_like(bits)
    out[bits] = chosen[numbers[bits]]
    return out


def _spread(bits: Bits, axes: list[int]) -> Bits:
    """Return ``bits`` and their neighbours along ``axes``."""
    wider = bits.copy()
    for axis in axes:
        lower, upper = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        wider[upper] |= bits[lower]
        wider[lower] |= bits[upper]
    return wider


def _enclosed(pieces: Bits, soft: Bits, axes: list[int]) -> Bits:
    """Return those pieces of which less than `_MOST_EXPOSED` of the cells have ``soft`` ones beside them."""
    from scipy import ndimage  # here, not above: it takes a while to load, and to read a label does without it

    numbers, count = ndimage.label(pieces)
    exposed = _sizes(numbers, pieces & _spread(soft, axes), count)
    return _chosen(pieces, numbers, exposed < _MOST_EXPOSED * _sizes(numbers, pieces, count))
