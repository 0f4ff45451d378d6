"""
write_nifti(): planes of probabilities -> one NIfTI-1 file, a plane at a time, with the exact affine.

Not by SimpleITK: that wants the whole volume at once, twice, and straightens the sheared affine of a tilted stack
without a word, by which its slices move by centimetres. Tests read these files back with it.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
    from nibabel.nifti1 import Nifti1Header

    assert len(description) < 80
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1 / STEPS, 0.0)
    header["cal_max"] = 1.0
    header["descrip"] = description.encode("ascii")
    axes = affine_ras[:3, :3] / np.linalg.norm(affine_ras[:3, :3], axis=0)
    # A qform knows rotations alone; nibabel would straighten a sheared affine without a word.
    square = bool(np.abs(axes.T @ axes - np.eye(3)).max() < 1e-6)
    header.set_qform(affine_ras, code=1 if square else 0)
    header.set_sform(affine_ras, code=1)
    header.set_data_offset(352)
    header["magic"] = b"n+1"
    return bytes(header.binaryblock) + bytes(4)  # no extensions
