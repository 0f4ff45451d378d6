"""Does a cached volume show the pattern that was put into the patient?

How far a right answer may be off is derived, not chosen:

- Linear interpolation between samples ``g`` apart is off by at most ``g^2 / 8 * |f''|`` along each axis.
- Where ``g`` is finer than the target spacing ``t``, the volume is smoothed by a triangle of half-width
  ``sqrt(t^2 - g^2)``, which adds at most ``(t^2 - g^2) / 12 * |f''|``. Together that is under ``t^2 / 8 * |f''|``.
- So along each axis ``max(g, t)^2 / 8 * |f''|``, with the largest second derivative of the true pattern nearby.
  All weights are positive and sum to one, so the axes' errors add and are not amplified.
- Rounding: half a step of what the file stores, half a step of what the cache stores.

A ramp has no second derivative: it must come through exactly, which is what makes this a test of *position*. Half a
millimetre of shift along the flattest axis of the pattern is already beyond the bound almost everywhere.
"""

from __future__ import annotations

import numpy as np

from tests.support.acquisition import Acquisition
from tests.support.cached import CLOSEST, CachedImage
from tests.support.pattern import Blob, Pattern


def interior(image: CachedImage, acquisition: Acquisition) -> np.ndarray:
    """Voxels whose value is determined by samples on all sides (beyond the outermost ones values are clamped)."""
    # Linear interpolation and smoothing reach g + sqrt(t^2 - g^2) <= sqrt(2) t where samples are finer than voxels.
    return acquisition.is_interior(image.centres(), 1.5 * float(image.spacing_mm.max()))


def tolerance(
    image: CachedImage, points: np.ndarray, acquisition: Acquisition, pattern: Pattern, step: float = 1.0
) -> np.ndarray:
    """The bound of the module's docstring at LPS points; ``step`` is the file's stored step in physical units."""
    target = float(image.spacing_mm.max())
    bound = np.full(points.shape[:-1], 0.5 * step + 0.5 * image.meta["intensity"]["scale"] + 0.01)
    for direction, gap in (
        (acquisition.row_direction, np.full(points.shape[:-1], acquisition.spacing_mm[1])),
        (acquisition.column_direction, np.full(points.shape[:-1], acquisition.spacing_mm[0])),
        (acquisition.normal, acquisition.gap_mm(points, 1.5 * target)),
    ):
        reach = np.maximum(gap, target)
        bound += reach**2 / 8 * pattern.curvature(points, direction, float(reach.max(initial=target)))
    return bound


def shift_mm(
    points: np.ndarray, values: np.ndarray, allowed: np.ndarray, acquisition: Acquisition, pattern: Pattern
) -> np.ndarray:
    """By how much the content is displaced (LPS mm): one Gauss-Newton step of a least-squares registration.

    Each voxel counts by how sure its value is: one in a wide gap between slices says little about position.
    """
    gradient = pattern.gradient(points)
    # content(p) = truth(p - shift): to first order the difference is -gradient . shift. What interpolation and
    # smoothing do is a multiple of the second derivative along each axis; without a column of their own they would
    # pass for a shift where few slices are there to tell the two apart.
    axes = (acquisition.row_direction, acquisition.column_direction, acquisition.normal)
    blur = [pattern.second_derivative(points, axis)[:, None] for axis in axes]
    columns = np.concatenate([-gradient, *blur, np.ones((len(points), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(columns / allowed[:, None], (values - pattern(points)) / allowed, rcond=None)
    return solution[:3]


def assert_shows(
    image: CachedImage,
    acquisition: Acquisition,
    pattern: Pattern,
    *,
    step: float = 1.0,
    at_least: int = 200,
    lossy: float = 0.0,
    where: np.ndarray | None = None,
) -> None:
    """Every interior voxel has the pattern's value, and nothing is displaced by 0.1 mm."""
    inside = interior(image, acquisition)
    if where is not None:
        inside &= where
    assert inside.sum() >= at_least, f"only {inside.sum()} voxels of {image.stored.shape} can be judged"
    if (every := inside.sum() // 4000) > 1:
        # A few thousand voxels tell as much as all of them; a step that shares no factor with the rows spreads them.
        index = np.flatnonzero(inside)
        inside = np.zeros_like(inside)
        inside.flat[index[:: every | 1]] = True
    points, values = image.centres()[inside], image.physical[inside]
    low, high = image.meta["intensity"]["clip"]
    expected = np.clip(pattern(points), low, high)
    allowed = tolerance(image, points, acquisition, pattern, step) + lossy
    excess = np.abs(values - expected) - allowed
    moved = shift_mm(points, values, allowed, acquisition, pattern)
    worst = int(np.argmax(excess))
    assert excess[worst] <= 0, (
        f"at {points[worst].round(2)} (zyx {image.zyx(points[worst]).round()}): {values[worst]:.1f}, "
        f"expected {expected[worst]:.1f} within {allowed[worst]:.1f}; {(excess > 0).sum()} of {inside.sum()} are off; "
        f"shift {moved.round(3)} mm; decisions {image.meta['decisions']}"
    )
    assert np.linalg.norm(moved) < 0.1, f"displaced by {moved.round(3)} mm"


def assert_frame(image: CachedImage, spacing_mm: float = 1.0) -> None:
    """z runs to Superior, y to Posterior, x to Left, as closely as the acquisition's axes allow; no shear."""
    axes = image.affine[:3, :3] / image.spacing_mm
    assert np.allclose(image.spacing_mm, spacing_mm, atol=1e-9)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6), "axes are not square to each other"
    assert np.allclose(image.affine[3], [0, 0, 0, 1])
    # The axes are a permutation of LPS up to obliqueness: the sum of cosines is the largest possible.
    assert np.linalg.det(axes @ CLOSEST.T) > 0, "the frame is mirrored"
    assert (np.einsum("ij,ij->j", axes, CLOSEST) > 0.5).all(), f"axes {axes.round(2)}"


def centroid_lps(image: CachedImage, blob: Blob, base: float) -> np.ndarray:
    """The centre of mass of a blob on a flat background, in LPS mm by the volume's affine."""
    points = image.centres()
    mass = image.physical - base
    # A window centred on the blob itself would pull the answer towards the truth: take all of the volume.
    mass = np.where(mass > 0.002 * blob.height, mass, 0.0)
    return np.einsum("zyx,zyxi->i", mass, points) / mass.sum()
