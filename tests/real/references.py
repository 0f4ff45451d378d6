"""Reference volumes (NIfTI) and how a cached volume compares with one in patient space.

A reference is read by SimpleITK, which turns NIfTI's RAS into LPS, and interpolated linearly at the centres
of the cached voxels. That shares no code with the program, and assumes only the affine that the cache states.
"""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import dataclass
from pathlib import Path

import dcm2niix
import numpy as np
import SimpleITK as sitk
from scipy.ndimage import map_coordinates


@dataclass(frozen=True)
class Reference:
    """Voxels (k, j, i) and the affine (k, j, i, 1) -> (x, y, z, 1), LPS mm, voxel centres."""

    name: str
    voxels: np.ndarray
    affine_lps: np.ndarray


def read_reference(path: Path) -> Reference:
    """Read a NIfTI volume."""
    image = sitk.ReadImage(str(path))
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    columns = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3] = columns[:, ::-1]  # SimpleITK's index order is (i, j, k)
    affine[:3, 3] = image.GetOrigin()
    return Reference(path.name, voxels, affine)


def convert(dicom: Path, target: Path) -> list[Path]:
    """Let dcm2niix make references; the tilt-corrected and evenly spaced ones replace the plain ones.

    ``-p n`` keeps the stored rescale: Philips' "precise" values are another unit than the cache's.
    """
    target.mkdir(parents=True, exist_ok=True)
    arguments = ["-z", "n", "-b", "n", "-p", "n", "-f", "made", "-o", str(target), str(dicom)]
    done = subprocess.run(
        [dcm2niix.bin, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    made = sorted(target.glob("*.nii"))
    assert made, f"dcm2niix made nothing of {dicom}: {done.stdout[-500:]}"
    return [p for p in made if "_Tilt" in p.name or "_Eq" in p.name] or made


@dataclass(frozen=True)
class Agreement:
    """Correlation at zero shift, the best one among shifts and flips, and the slope between the values."""

    correlation: float
    best_other: float
    best_other_name: str
    slope: float
    median_difference: float
    inside: float

    @property
    def agrees(self) -> bool:
        """Whether this is the bar that a cached volume has to clear."""
        return self.correlation >= 0.98 and self.correlation > self.best_other


def compare(
    cached: np.ndarray, affine_lps: np.ndarray, clip: tuple[float, float], reference: Reference
) -> Agreement:
    """Compare physical values (z, y, x) of a cached volume with a reference.

    `clip` is what the cache says it clipped its input to; the reference is clipped likewise before it is
    interpolated. Only voxels within the outermost centres of the reference count; of a large volume, every
    other one in each axis.
    """
    stride = 2 if cached.size > 1e6 else 1
    expected = np.full(cached.shape, np.nan, np.float32)
    to_index = np.linalg.inv(reference.affine_lps) @ affine_lps
    limits = np.asarray(reference.voxels.shape)[:, None, None] - 1
    source = np.clip(reference.voxels, *clip)
    y, x = np.meshgrid(*(np.arange(0, n, stride) for n in cached.shape[1:]), indexing="ij")
    for z in range(
        0, cached.shape[0], stride
    ):  # slice by slice: the coordinates of a whole volume would be 300 MB
        grid = np.stack([np.full(y.shape, z), y, x]).astype(float)
        index = np.tensordot(to_index[:3, :3], grid, 1) + to_index[:3, 3][:, None, None]
        inside = ((index >= -1e-3) & (index <= limits + 1e-3)).all(axis=0)
        index = np.clip(index, 0, limits)
        expected[z, y[inside], x[inside]] = map_coordinates(source, index[:, inside], order=1)
    known = np.isfinite(expected)
    assert known.any(), f"{reference.name} lies wholly outside the cached volume"

    others = {}
    for axis, step in itertools.product(range(3), (-1, 1)):
        if cached.shape[axis] < 3:
            continue
        here, there = [slice(None)] * 3, [slice(None)] * 3
        here[axis], there[axis] = (slice(1, None), slice(None, -1))[::step]
        others[f"{'zyx'[axis]}{step:+d}"] = _correlation(cached[tuple(there)], expected[tuple(here)])
    for count in (1, 2, 3):
        for axes in itertools.combinations(range(3), count):
            others["flip " + "".join("zyx"[a] for a in axes)] = _correlation(np.flip(cached, axes), expected)
    name = max(others, key=lambda key: others[key])

    a, b = expected[known].astype(np.float64), cached[known].astype(np.float64)
    slope = float(((a - a.mean()) * (b - b.mean())).sum() / max(((a - a.mean()) ** 2).sum(), 1e-12))
    return Agreement(
        correlation=_correlation(cached, expected),
        best_other=others[name],
        best_other_name=name,
        slope=slope,
        median_difference=float(np.median(np.abs(a - b))),
        inside=float(known.mean()),
    )


def _correlation(cached: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's r over the voxels that the reference covers; -1 where one side is constant."""
    known = np.isfinite(expected)
    a, b = expected[known].astype(np.float64), cached[known].astype(np.float64)
    if a.size == 0 or a.std() == 0 or b.std() == 0:
        return -1.0
    return float(np.corrcoef(a, b)[0, 1])


def same_box(
    shape: tuple[int, ...], affine_lps: np.ndarray, reference: Reference, *, atol_mm: float = 0.05
) -> str:
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
