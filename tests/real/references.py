"""References in patient space, and how a cached volume compares with one.

Two kinds: NIfTI volumes (read by SimpleITK, which turns RAS into LPS), and the DICOM slices themselves, looked up point
by point with the formula of DICOM PS3.3 C.7.6.2.1.1. Neither shares code with the program, and both assume only the
affine that the cache states. They interpolate linearly, at the centres of the cached voxels.
"""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pydicom
import SimpleITK as sitk
from scipy.ndimage import map_coordinates


class Reference(Protocol):
    """Something that knows the value at a point in the patient."""

    name: str

    def sample(self, points: np.ndarray, clip: tuple[float, float]) -> np.ndarray:
        """Values, clipped before they are interpolated, at (3, n) points (LPS mm); NaN outside the centres."""


@dataclass(frozen=True)
class Nifti:
    """Voxels (k, j, i) and the affine (k, j, i, 1) -> (x, y, z, 1), LPS mm, voxel centres."""

    name: str
    voxels: np.ndarray
    affine_lps: np.ndarray

    def sample(self, points: np.ndarray, clip: tuple[float, float]) -> np.ndarray:
        inverse = np.linalg.inv(self.affine_lps)
        index = inverse[:3, :3] @ points + inverse[:3, 3:]
        return _interpolate(np.clip(self.voxels, *clip), index)


@dataclass(frozen=True)
class Slices:
    """Single-frame DICOM slices: pixels (slice, row, column) and where the file says that each slice lies."""

    name: str
    pixels: np.ndarray
    origins: np.ndarray
    row: np.ndarray
    column: np.ndarray
    spacing_mm: tuple[float, float]

    def sample(self, points: np.ndarray, clip: tuple[float, float]) -> np.ndarray:
        normal = np.cross(self.row, self.column)
        depth = normal @ points
        depths = self.origins @ normal
        k = np.interp(depth, depths, np.arange(len(depths)))
        below = np.clip(np.floor(k).astype(int), 0, len(depths) - 2)
        pixels = np.clip(self.pixels, *clip)
        values = np.zeros(depth.shape)
        for slice_index, weight in ((below, below + 1 - k), (below + 1, k - below)):
            # Each slice has its own origin: under a gantry tilt they don't lie above each other.
            within = points - self.origins[slice_index].T
            r, c = self.column @ within / self.spacing_mm[0], self.row @ within / self.spacing_mm[1]
            values += weight * _interpolate(pixels, np.stack([slice_index, r, c]))
        values[(depth < depths[0] - 1e-3) | (depth > depths[-1] + 1e-3)] = np.nan
        return values


def _interpolate(voxels: np.ndarray, index: np.ndarray) -> np.ndarray:
    limits = np.asarray(voxels.shape)[:, None] - 1
    inside = ((index >= -1e-3) & (index <= limits + 1e-3)).all(axis=0)
    values = np.full(index.shape[1:], np.nan)
    values[inside] = map_coordinates(voxels, np.clip(index[:, inside], 0, limits), order=1)
    return values


def read_nifti(path: Path) -> Nifti:
    """Read a NIfTI volume."""
    image = sitk.ReadImage(str(path))
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    columns = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3] = columns[:, ::-1]  # SimpleITK's index order is (i, j, k)
    affine[:3, 3] = image.GetOrigin()
    return Nifti(path.name, voxels, affine)


def read_slices(folder: Path) -> Slices | None:
    """Read single-frame slices of one orientation; None where a folder holds something else."""
    found: list[Any] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        ds = pydicom.dcmread(path, force=True)
        if "PixelData" in ds:
            found.append(ds)
    if len(found) < 2 or any("ImagePositionPatient" not in ds or "NumberOfFrames" in ds for ds in found):
        return None
    orientation = np.array(found[0].ImageOrientationPatient, float)
    row, column = orientation[:3] / np.linalg.norm(orientation[:3]), orientation[3:] / np.linalg.norm(orientation[3:])
    normal = np.cross(row, column)
    found.sort(key=lambda ds: float(np.array(ds.ImagePositionPatient, float) @ normal))
    pixels = [ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0)) for ds in found]
    return Slices(
        "DICOM slices",
        np.stack(pixels).astype(np.float32),
        np.array([ds.ImagePositionPatient for ds in found], float),
        row,
        column,
        (float(found[0].PixelSpacing[0]), float(found[0].PixelSpacing[1])),
    )


def convert(dicom: Path, target: Path) -> list[Nifti]:
    """Let dcm2niix make references; the tilt-corrected and evenly spaced ones replace the plain ones.

    ``-p n`` keeps the stored rescale: Philips' "precise" values are another unit than the cache's.
    """
    target.mkdir(parents=True, exist_ok=True)
    arguments = ["-z", "n", "-b", "n", "-p", "n", "-f", "made", "-o", str(target), str(dicom)]
    import dcm2niix

    done = subprocess.run([dcm2niix.bin, *arguments], capture_output=True, text=True, timeout=120, check=False)
    made = {path.name: read_nifti(path) for path in sorted(target.glob("*.nii"))}
    assert made, f"dcm2niix made nothing of {dicom}: {done.stdout[-500:]}"
    corrected = [made[name] for name in made if "_Tilt" in name or "_Eq" in name]
    return [anchored(c, made["made.nii"]) for c in corrected] or list(made.values())


def anchored(corrected: Nifti, plain: Nifti) -> Nifti:
    """The tilt-corrected volume, moved so that its first slice lies where the uncorrected volume has it.

    dcm2niix shifts rows to take a tilt out, and gives the result an origin that is 79.5 mm off along z for
    ct-philips-tilt. Its first slice before the correction lies where the DICOM says; the same pixels are found in
    the corrected one, and pin the whole volume. What is then compared is everything beyond that first slice.
    """
    wanted = plain.voxels[0]
    rows = len(wanted)
    starts = range(corrected.voxels.shape[1] - rows + 1)
    start = min(starts, key=lambda s: float(np.abs(corrected.voxels[0, s : s + rows] - wanted).mean()))
    there = corrected.affine_lps @ [0, start, 0, 1]
    affine = corrected.affine_lps.copy()
    affine[:3, 3] += plain.affine_lps[:3, 3] - there[:3]
    moved = np.linalg.norm(affine[:3, 3] - corrected.affine_lps[:3, 3])
    return replace(corrected, name=f"{corrected.name}, moved {moved:.1f} mm", affine_lps=affine)


@dataclass(frozen=True)
class Agreement:
    """Correlation at zero shift, the best one among shifts and flips, and the slope between the values."""

    correlation: float
    best_other: float
    best_other_name: str
    slope: float

    @property
    def agrees(self) -> bool:
        """Whether this is the bar that a cached volume has to clear."""
        return self.correlation >= 0.98 and self.correlation > self.best_other


def compare(cached: np.ndarray, affine_lps: np.ndarray, clip: tuple[float, float], reference: Reference) -> Agreement:
    """Compare physical values (z, y, x) of a cached volume with a reference.

    `clip` is what the cache says it clipped its input to; the reference is clipped likewise. Only voxels within the
    outermost centres of the reference count; of a large volume, a lattice of some 400,000.
    """
    stride = max(1, round((cached.size / 4e5) ** (1 / 3)))
    lattice = tuple(slice(None, None, stride) for _ in range(3))
    index = np.stack(np.meshgrid(*(np.arange(0, n, stride) for n in cached.shape), indexing="ij")).astype(float)
    points = affine_lps[:3, :3] @ index.reshape(3, -1) + affine_lps[:3, 3:]
    expected = reference.sample(points, clip).reshape(index.shape[1:])
    assert np.isfinite(expected).any(), f"{reference.name} lies wholly outside the cached volume"

    others = {}
    for axis, step in itertools.product(range(3), (-1, 1)):
        if cached.shape[axis] < 3:
            continue
        # The neighbours of the lattice's points; the first or last point may have none.
        there, here = list(lattice), [slice(None)] * 3
        there[axis] = slice(1 if step > 0 else stride - 1, None, stride)
        neighbours = cached[tuple(there)]
        n = min(neighbours.shape[axis], expected.shape[axis] - (step < 0))
        here[axis] = slice(n) if step > 0 else slice(1, n + 1)
        others[f"{'zyx'[axis]}{step:+d}"] = _correlation(np.take(neighbours, range(n), axis), expected[tuple(here)])
    for count in (1, 2, 3):
        for axes in itertools.combinations(range(3), count):
            others["flip " + "".join("zyx"[a] for a in axes)] = _correlation(np.flip(cached, axes)[lattice], expected)
    name = max(others, key=lambda key: others[key])

    known = np.isfinite(expected)
    a, b = expected[known], cached[lattice][known]
    slope = float(((a - a.mean()) * (b - b.mean())).sum() / max(((a - a.mean()) ** 2).sum(), 1e-12))
    return Agreement(_correlation(cached[lattice], expected), others[name], name, slope)


def _correlation(cached: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's r over the voxels that the reference covers; -1 where one side is constant."""
    known = np.isfinite(expected)
    a, b = expected[known].astype(np.float64), cached[known].astype(np.float64)
    if a.size == 0 or a.std() == 0 or b.std() == 0:
        return -1.0
    return float(np.corrcoef(a, b)[0, 1])


def same_box(shape: tuple[int, ...], affine_lps: np.ndarray, reference: Nifti, *, atol_mm: float = 0.05) -> str:
    """'' where the cached grid is centred on the reference's box and just covers it, else the fault.

    Both boxes reach half a voxel beyond the outermost centres. Axes are matched by direction, so this sees
    wrong permutations and obliqueness, but not a flip, for which a box is the same.
    """
    ours, theirs = _box(shape, affine_lps), _box(reference.voxels.shape, reference.affine_lps)
    apart = float(np.linalg.norm(ours[0] - theirs[0]))
    if apart > atol_mm:
        return f"centres are {apart:.2f} mm apart"
    cosines = np.abs(ours[2].T @ theirs[2])
    partner = cosines.argmax(axis=1)
    if sorted(partner) != [0, 1, 2] or cosines.max(axis=1).min() < 0.99999:
        return f"axes differ: |cosines| {cosines.round(4).tolist()}"
    for axis in range(3):
        extent, wanted = ours[1][axis], theirs[1][partner[axis]]
        spacing = extent / shape[axis]
        if not wanted - atol_mm <= extent < wanted + spacing + atol_mm:
            return f"extent along {'zyx'[axis]} is {extent:.2f} mm, the source's {wanted:.2f} mm"
    return ""


def _box(shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre (mm), extents (mm) and unit axes (as columns) of a grid's field of view."""
    centre = affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + affine[:3, 3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return centre, spacing * np.asarray(shape), affine[:3, :3] / spacing
