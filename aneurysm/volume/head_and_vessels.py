"""Volume -> HeadBlocks or Survey: where the head is, and where its vessels seem to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from aneurysm.volume.blocks import EDGE_MM, HeadBlocks, Survey
from aneurysm.volume.cells import cell_edge, fold
from aneurysm.volume.intensity import Intensity

_AIR_BELOW_HU: Final = -500.0
_ABOVE_CLIP_HU: Final = 50.0
"""Where a spec clips above that, air is stored as the lower end of the range, and head begins so far above it."""
_BONE_ABOVE_HU: Final = 700.0
_HEAD_ABOVE: Final = 0.1
"""Share of the stored range of MR above which there is head."""
_HEAD_SHARE: Final = 0.02
"""A block is head if more than this share of its voxels is: noise lights up single ones."""
_VESSEL_SHARE: Final = 0.1
"""Share of the head's inner blocks taken for vessels where there is no mask."""
_THINNER_THAN_MM: Final = 10.0
"""Brain vessels are up to 6 mm wide; what is wider than this in two directions is none."""
_RIM_BLOCKS: Final = 2
"""Skin, fat and skull, which are bright and thin as vessels are, take the outer 16 mm."""


def head_blocks(voxels: NDArray[Any], intensity: Intensity, spacing_mm: tuple[float, float, float]) -> HeadBlocks:
    """Return where the head is, as `survey` does: the search for vessels takes most of the time."""
    return _coarse(voxels, intensity, spacing_mm).blocks


def survey(voxels: NDArray[Any], intensity: Intensity, spacing_mm: tuple[float, float, float]) -> Survey:
    """
    Return what lies where in ``voxels`` (z, y, x), stored integers.

    Parameters
    ----------
    voxels, intensity
        The volume, and what its integers mean.
    spacing_mm
        Of the voxels, (z, y, x).
    """
    coarse = _coarse(voxels, intensity, spacing_mm)
    edge, head = coarse.blocks.edge, coarse.blocks.head
    inner = ndimage.binary_erosion(head, iterations=_RIM_BLOCKS, border_value=1)
    among = inner if inner.any() else head

    def thin(*, dark: bool) -> NDArray[np.bool_]:
        thinness = _thinness(coarse.values, intensity, coarse.cell_mm, dark=dark)
        return _highest(fold(np.maximum, thinness, coarse.cells), among)

    # Which of the two are vessels depends on the modality, which train.csv may name later: both are kept.
    return Survey(edge, head, thin(dark=False), None if intensity.unit == "HU" else thin(dark=True))


@dataclass(frozen=True)
class _Coarse:
    """A volume in cells of about 2 mm: physical ``values``, ``cells`` to a block, and where the head is."""

    values: NDArray[np.float32]
    cells: list[int]
    cell_mm: list[float]
    blocks: HeadBlocks


def _coarse(voxels: NDArray[Any], intensity: Intensity, spacing_mm: tuple[float, float, float]) -> _Coarse:
    factor = cell_edge(voxels.shape, spacing_mm)
    cells = [max(1, round(EDGE_MM / (s * f))) for s, f in zip(spacing_mm, factor, strict=True)]
    z, y, x = (f * c for f, c in zip(factor, cells, strict=True))
    shape = [-(-n // e) for n, e in zip(voxels.shape, (z, y, x), strict=True)]
    values = fold(np.add, voxels, factor, np.int32).astype(np.float32)
    values *= np.float32(intensity.scale / np.prod(factor))
    values += np.float32(intensity.offset)
    # To whole blocks, so that each is a box of cells.
    values = np.pad(values, [(0, n * c - m) for n, c, m in zip(shape, cells, values.shape, strict=True)], mode="edge")
    head = _head_alone(fold(np.add, _is_head(values, intensity), cells, np.int32) > _HEAD_SHARE * np.prod(cells))
    cell_mm = [s * f for s, f in zip(spacing_mm, factor, strict=True)]
    return _Coarse(values, cells, cell_mm, HeadBlocks((z, y, x), head))


def _is_head(values: NDArray[np.float32], intensity: Intensity) -> NDArray[np.bool_]:
    if intensity.unit == "HU":
        return np.asarray(values > max(_AIR_BELOW_HU, intensity.clip[0] + _ABOVE_CLIP_HU))
    bottom, top = intensity.clip
    return np.asarray(values > bottom + _HEAD_ABOVE * (top - bottom))


def _head_alone(blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what lies within; leave out the table and the headrest: what is a block thin, or apart from the rest."""
    # Where a coil reaches only the scalp, the brain is as dark as air. Slice by slice: the neck leaves the head open.
    blocks = np.stack([ndimage.binary_fill_holes(slice_) for slice_ in blocks])
    numbers, n = ndimage.label(ndimage.binary_erosion(blocks, border_value=1))
    if n == 0:
        return blocks
    largest = numbers == 1 + int(np.argmax(np.bincount(numbers.ravel())[1:]))
    return np.asarray(blocks & ndimage.binary_dilation(largest, np.ones((3, 3, 3))))


def _thinness(
    values: NDArray[np.float32], intensity: Intensity, spacing_mm: list[float], *, dark: bool
) -> NDArray[np.float32]:
    """
    Return how much each voxel of ``values`` (physical) stands out as part of a thin structure.

    A top-hat along each axis keeps what is narrower than its line: a tube stands out along two axes or three, a plate
    such as the dura along one. The second highest of the three therefore tells tubes from plates, for six filters
    along lines; a Hessian at several scales takes many times as long.
    """
    signed = -values if dark else values
    hats = []
    for axis in range(3):
        length = max(3, round(_THINNER_THAN_MM / spacing_mm[axis]))
        hats.append(signed - _running(np.maximum, _running(np.minimum, signed, length, axis), length, axis))
    a, b, c = hats
    middle = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    if intensity.unit == "HU":
        # The rim of bone has a vessel's HU, since its voxels are half bone.
        bone = values > _BONE_ABOVE_HU
        for axis in range(3):
            bone = _running(np.logical_or, bone, 3, axis)
        middle[bone] = 0
    return np.asarray(middle)


def _running(reduce: np.ufunc, values: NDArray[Any], length: int, axis: int) -> NDArray[Any]:
    """Reduce a window of ``length`` (made odd) around each voxel; scipy's minimum_filter1d takes five times as long."""
    half = length // 2
    widths = [(0, 0)] * 3
    widths[axis] = (half, half)
    padded, n = np.pad(values, widths, mode="edge"), values.shape[axis]

    def shifted(k: int) -> NDArray[Any]:
        return padded[(slice(None),) * axis + (slice(k, k + n),)]

    out = shifted(0).copy()
    for k in range(1, 2 * half + 1):
        reduce(out, shifted(k), out=out)
    return out


def _highest(score: NDArray[np.float32], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    n = int(np.ceil(_VESSEL_SHARE * np.count_nonzero(among)))
    if n == 0:
        return np.zeros_like(among)
    limit = float(np.partition(score[among], -n)[-n])
    return np.asarray(among & (score >= max(limit, 1e-6)))
