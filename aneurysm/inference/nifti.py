"""
write_nifti(): planes of probabilities -> one NIfTI-1 file, a plane at a time, with the exact affine.

Not by SimpleITK: that wants the whole volume at once, twice, and straightens the sheared affine of a tilted stack
without a word, by which its slices move by centimetres. Tests read these files back with it.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from aneurysm.processes.files import raise_no_space, replaced_file

LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's x and y run to Left and Posterior, NIfTI's to Right and Anterior."""
STEPS: Final = 255
"""Probabilities are stored in steps of 1/255, of which readers make probabilities again by the header's slope."""


def write_nifti(
    path: Path,
    planes: Iterable[NDArray[np.float32]],
    shape: tuple[int, int, int],
    affine_lps: NDArray[np.float64],
    description: str,
) -> None:
    """
    Write probabilities to ``path`` (.nii.gz), whole or not at all; a file that is there is replaced.

    Parameters
    ----------
    planes
        ``shape[2]`` of them, (shape[1], shape[0]) each, from 0 to 1.
    shape
        Voxels along (i, j, k): i counts the columns of a plane, j its rows, k the planes.
    affine_lps
        (4, 4): (i, j, k, 1) to LPS mm. It may be sheared: then there is an sform only, which ITK refuses to read.
    description
        Up to 79 characters of ASCII.

    Raises
    ------
    NoSpaceError
        The disk is full.
    """
    with (
        raise_no_space(path.parent, "Free some space, and the same command writes what is missing"),
        replaced_file(path) as file,
        # Level 1: most of it is zeros anyway. No time in the file: the same answer has the same bytes.
        gzip.GzipFile("", "wb", 1, file, mtime=0) as packed,
    ):
        packed.write(_header(shape, LPS_TO_RAS @ affine_lps, description))
        for plane in planes:
            packed.write(np.rint(plane * np.float32(STEPS)).astype(np.uint8).tobytes())


def _header(shape: tuple[int, int, int], affine_ras: NDArray[np.float64], description: str) -> bytes:
    assert len(description) < 80
    steps = np.linalg.norm(affine_ras[:3, :3], axis=0)
    axes = affine_ras[:3, :3] / steps
    # qform: a rotation and the sign of the third axis, which is all that it can say.
    sign = 1.0 if np.linalg.det(axes) > 0 else -1.0
    square = bool(np.abs(axes.T @ axes - np.eye(3)).max() < 1e-6)
    quaternion = Rotation.from_matrix(axes * [1, 1, sign]).as_quat() if square else np.array([0.0, 0.0, 0.0, 1.0])
    b, c, d = quaternion[:3] * (1.0 if quaternion[3] >= 0 else -1.0)
    header = struct.pack(
        "<i10s18sihcB8h3f4h8f3fhBB4f2i80s24s2h6f12f16s4s4x",
        348, b"", b"", 0, 0, b"r", 0,  # size; unused but for "regular"
        3, *shape, 1, 1, 1, 1,  # dim
        0.0, 0.0, 0.0, 0, 2, 8, 0,  # intent; uint8 of 8 bits
        sign, *steps, 0.0, 0.0, 0.0, 0.0,  # pixdim
        352.0, 1 / STEPS, 0.0, 0, 0, 2,  # where the voxels begin, slope, intercept, slices, millimetres
        1.0, 0.0, 0.0, 0.0, 0, 0,  # shown from 0 to 1
        description.encode("ascii"), b"",
        int(square), 1,  # codes of qform and sform: scanner coordinates
        b, c, d, *affine_ras[:3, 3],
        *affine_ras[:3].ravel(),
        b"", b"n+1",
    )  # fmt: skip
    assert len(header) == 352
    return header
