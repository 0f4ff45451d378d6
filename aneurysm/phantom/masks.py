"""Vessel masks -> NIfTI, in an array order that is not the DICOM's: readers must place them by the affine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.scanner import SliceStack
from aneurysm.phantom.truth import LesionTruth


def is_regular(stack: SliceStack) -> bool:
    """Whether a NIfTI file can hold the stack: even slices, along the normal."""
    if len(stack) < 2:
        return False
    steps = np.diff(stack.positions_lps, axis=0)
    even = bool(np.abs(steps - steps.mean(axis=0)).max() < 1e-3)
    sideways = steps.mean(axis=0) - (steps.mean(axis=0) @ stack.normal) * stack.normal
    return even and bool(np.linalg.norm(sideways) < 1e-3)


def touch_up(labels: npt.NDArray[np.uint8], stack: SliceStack, lesions: list[LesionTruth]) -> None:
    """Give the voxel of each marked aneurysm its value, however coarse the grid: annotators leave none out."""
    for lesion in lesions:
        if lesion.point_lps is not None:
            k, x, y = stack.locate(np.array(lesion.point_lps))
            i, j = round(y), round(x)
            if 0 <= i < stack.shape[0] and 0 <= j < stack.shape[1]:
                labels[k, i, j] = lesion.value


def write_mask(path: Path, values: npt.NDArray[Any], stack: SliceStack, rng: np.random.Generator) -> None:
    """
    Write (slices, rows, columns) of a regular stack as uncompressed NIfTI, flipped and permuted by ``rng``.

    ITK wants (x, y, z) with a direction of right-handed axes; every flip moves the origin to the other end.
    """
    import SimpleITK as sitk

    step = (stack.positions_lps[-1] - stack.positions_lps[0]) / max(len(stack) - 1, 1)
    gap = float(np.linalg.norm(step))
    axes = [step / gap, stack.column, stack.row]  # Of the array's axes, in its order.
    spacing = [gap, stack.spacing_mm[0], stack.spacing_mm[1]]
    origin = stack.positions_lps[0].copy()
    order = [0, 1, 2] if rng.random() < 0.5 else [int(i) for i in rng.permutation(3)]
    flips = [bool(rng.random() < 0.5) for _ in range(3)]
    flips[1] = True  # Rows of a NIfTI from a DICOM run towards the nose: RAS.
    for axis in range(3):
        if flips[axis]:
            origin = origin + axes[axis] * spacing[axis] * (values.shape[axis] - 1)
            axes[axis] = -axes[axis]
    flipped = values[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    image = sitk.GetImageFromArray(np.ascontiguousarray(flipped.transpose(order)))
    xyz = order[::-1]
    image.SetSpacing([spacing[a] for a in xyz])
    image.SetDirection(np.stack([axes[a] for a in xyz], axis=1).ravel().tolist())
    image.SetOrigin(origin.tolist())
    sitk.WriteImage(image, str(path), useCompression=False)
