"""SimpleITK's reader and resampler as an independent reference, on orthogonal and even series.

What is compared: our voxels with SimpleITK's on the very same grid, which is read from the cached affine. Series
whose samples are coarser than the grid must agree within rounding, noise and all. Finer ones we smooth and SimpleITK
does not, so there the reference is SimpleITK's linear interpolation on a lattice eight times as dense, averaged with
the weights that we claim to use. What is deliberately not compared: tilted and uneven stacks, which SimpleITK gets
wrong, and the outermost samples, beyond which it has no values.
"""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from tests.support.acquisition import PLANES, Acquisition, acquire, rotation
from tests.support.cached import CachedImage, cached
from tests.support.pattern import anatomy
from tests.support.series import write_series

DENSITY = 8


def _noise(acquisition: Acquisition, seed: int = 0) -> np.ndarray:
    """White noise: the worst case for any disagreement about weights or positions."""
    return np.random.default_rng(seed).integers(-800, 1800, (len(acquisition), *acquisition.shape)).astype(float)


def _by_itk(written) -> sitk.Image:
    along = written.acquisition.positions @ written.acquisition.normal
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(written.paths[i]) for i in np.argsort(along)])
    return sitk.Cast(reader.Execute(), sitk.sitkFloat64)


def _on_grid_of(image: CachedImage, moving: sitk.Image, density: int = 1) -> np.ndarray:
    """SimpleITK's linear interpolation at the cached voxel centres, or ``density`` points per voxel and axis.

    The dense lattice has its first point at the first voxel centre. NaN where SimpleITK has no value.
    """
    # ITK indexes (x, y, z); our affine's columns are z, y, x.
    axes = image.affine[:3, :3][:, ::-1] / image.spacing_mm[::-1]
    size = [int(n - 1) * density + 1 for n in image.stored.shape[::-1]]
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(size)
    resampler.SetOutputSpacing((image.spacing_mm[::-1] / density).tolist())
    resampler.SetOutputOrigin(image.affine[:3, 3].tolist())
    resampler.SetOutputDirection(axes.ravel().tolist())
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetDefaultPixelValue(float("nan"))
    return sitk.GetArrayFromImage(resampler.Execute(moving))


def _triangle(gap_mm: float, target_mm: float) -> np.ndarray:
    """Weights on the dense lattice of a triangle of half-width sqrt(t^2 - g^2): exact averages over each cell."""
    step = target_mm / DENSITY
    half = np.sqrt(max(target_mm**2 - gap_mm**2, 0.0))
    reach = int(np.ceil(half / step)) + 1
    fine = (np.arange(-reach * 64, reach * 64 + 1)) / 64 * step
    density = np.clip(1 - np.abs(fine) / half, 0, None) if half > 0 else (fine == 0).astype(float)
    # Split each fine point between its two lattice neighbours: what linear interpolation between them amounts to.
    weights = np.zeros(2 * reach + 3)
    position = fine / step + reach + 1
    low = np.floor(position).astype(int)
    np.add.at(weights, low, density * (1 - (position - low)))
    np.add.at(weights, low + 1, density * (position - low))
    return weights / weights.sum()


def _averaged(dense: np.ndarray, gaps_mm: np.ndarray, target_mm: float) -> np.ndarray:
    """The dense lattice smoothed along z, y, x and taken at the voxel centres."""
    for axis, gap in enumerate(gaps_mm):
        weights = _triangle(float(gap), target_mm)
        reach = len(weights) // 2
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(dense, pad, constant_values=np.nan)
        count = dense.shape[axis]
        taken = range(0, count, DENSITY)
        columns = [
            np.tensordot(weights, np.take(padded, range(i, i + len(weights)), axis=axis), axes=(0, axis)) for i in taken
        ]
        dense = np.stack(columns, axis=axis)
    return dense


def _gaps_zyx(image: CachedImage, acquisition: Acquisition) -> np.ndarray:
    """The series' spacings in the order of the volume's axes."""
    gap = np.linalg.norm(acquisition.positions[1] - acquisition.positions[0])
    ours = {
        0: (acquisition.normal, gap),
        1: (acquisition.column_direction, acquisition.spacing_mm[0]),
        2: (acquisition.row_direction, acquisition.spacing_mm[1]),
    }
    axes = image.affine[:3, :3] / image.spacing_mm
    return np.array([next(spacing for d, spacing in ours.values() if abs(d @ axes[:, k]) > 0.99) for k in range(3)])


@pytest.mark.parametrize(
    "spacing_mm, gap_mm",
    [
        pytest.param((1.0, 1.0), 1.0, id="equal to the target"),
        pytest.param((1.0, 1.0), 3.0, id="thick slices"),
        pytest.param((1.3, 1.7), 2.2, id="coarser everywhere"),
    ],
)
@pytest.mark.parametrize("reverse", [False, True], ids=["along the normal", "against the normal"])
@pytest.mark.parametrize("plane", PLANES)
def test_coarse_series_equal_simpleitk_within_rounding(tmp_path, plane, reverse, spacing_mm, gap_mm):
    acquisition = acquire(plane, spacing_mm=spacing_mm, gap_mm=gap_mm, reverse=reverse, slices=14, shape=(17, 15))
    written = write_series(tmp_path / "s", acquisition, _noise(acquisition))
    image = cached(tmp_path / "s")
    reference = _on_grid_of(image, _by_itk(written))
    known = np.isfinite(reference)
    assert known.mean() > 0.5
    # Both are the same polynomial of the same integers: half a unit of rounding, plus that of the decimal strings.
    assert np.abs(image.physical - reference)[known].max() <= 0.51


def test_an_oblique_series_equals_simpleitk_within_rounding(tmp_path):
    turn = rotation((1, 2, -1), 14)
    acquisition = acquire("coronal", spacing_mm=(1.2, 1.1), gap_mm=2.5, turn=turn, slices=12, shape=(20, 18))
    written = write_series(tmp_path / "s", acquisition, _noise(acquisition))
    image = cached(tmp_path / "s")
    reference = _on_grid_of(image, _by_itk(written))
    known = np.isfinite(reference)
    assert known.mean() > 0.5
    assert np.abs(image.physical - reference)[known].max() <= 0.51


@pytest.mark.parametrize(
    "spacing_mm, gap_mm",
    [
        pytest.param((0.45, 0.45), 0.5, id="fine CTA"),
        pytest.param((0.6, 0.8), 1.0, id="fine in plane only"),
        pytest.param((0.5, 0.5), 2.5, id="fine in plane and thick across"),
        pytest.param((1.4, 1.2), 0.4, id="fine across only"),
    ],
)
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_fine_series_equal_simpleitk_averaged_over_the_voxel(tmp_path, plane, spacing_mm, gap_mm):
    """On noise of +-1,300 HU: only the weights that are claimed give this agreement."""
    shape = tuple(round(14 / s) for s in spacing_mm)
    acquisition = acquire(plane, spacing_mm=spacing_mm, gap_mm=gap_mm, slices=round(14 / gap_mm) + 1, shape=shape)
    written = write_series(tmp_path / "s", acquisition, _noise(acquisition))
    image = cached(tmp_path / "s")
    dense = _on_grid_of(image, _by_itk(written), DENSITY)
    reference = _averaged(dense, _gaps_zyx(image, acquisition), 1.0)
    known = np.isfinite(reference)
    assert known.sum() > 300
    difference = np.abs(image.physical - reference)[known]
    # Both sides are sums for the same integral (12 points over the triangle there, a lattice of 1/8 mm here), so that
    # single weights differ by some 2 %: on noise of 750 HU (one sigma) that is about 4 HU, and 5 sigma of it 20 HU.
    # A triangle a tenth wider differs by 14 HU on average; one sample off, by hundreds.
    assert difference.max() <= 40, f"{difference.max():.1f} HU, mean {difference.mean():.2f}"
    assert difference.mean() <= 6


def test_a_smooth_fine_series_equals_plain_simpleitk_within_the_smoothing(tmp_path):
    """Without any claim about weights: at 0.45 mm the smoothing to 1 mm changes a smooth image by under 3 HU."""
    acquisition = acquire(spacing_mm=(0.45, 0.45), gap_mm=0.5, slices=44, shape=(52, 48))
    pattern = anatomy(acquisition.centre)
    written = write_series(tmp_path / "s", acquisition, pattern)
    image = cached(tmp_path / "s")
    reference = _on_grid_of(image, _by_itk(written))
    inside = acquisition.is_interior(image.centres(), 1.5)
    assert inside.sum() > 1000
    # max |f''| is about 11 HU / mm^2 (the dark blob's 160 / 36 and the bright one's 220 / 25 and the waves);
    # times (1 - 0.2) / 12 for each of three axes, and rounding.
    assert np.abs(image.physical - reference)[inside].max() <= 3


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_a_fine_checkerboard_does_not_alias(tmp_path, plane):
    """Black and white pixels of 0.45 mm must come out grey at 1 mm; SimpleITK alone gives stripes."""
    acquisition = acquire(plane, spacing_mm=(0.45, 0.45), gap_mm=0.45, slices=40, shape=(44, 42))
    parity = np.indices((40, 44, 42)).sum(axis=0) % 2
    values = np.where(parity, 1500.0, 0.0)
    values[0, 0, 0] = 3000.0  # else all of it comes out as one grey, which has no signal
    written = write_series(tmp_path / "s", acquisition, values)
    image = cached(tmp_path / "s")
    inside = acquisition.is_interior(image.centres(), 1.5)
    plain = _on_grid_of(image, _by_itk(written))
    assert np.ptp(plain[inside]) > 500
    assert np.abs(image.physical[inside] - 750).max() < 30


def test_stripes_near_the_sampling_limit_do_not_alias_in_any_axis(tmp_path):
    """Stripes of 1.1 mm period can't be shown at 1 mm: what is left of them must be under a twentieth."""
    acquisition = acquire(spacing_mm=(0.4, 0.4), gap_mm=0.4, slices=60, shape=(60, 60))
    points = acquisition.points() - acquisition.centre
    for axis in range(3):
        values = 500 + 800 * np.sin(2 * np.pi * points[..., axis] / 1.1)
        write_series(tmp_path / str(axis), acquisition, values)
        image = cached(tmp_path / str(axis))
        inside = acquisition.is_interior(image.centres(), 1.5)
        assert np.abs(image.physical[inside] - 500).max() < 800 / 20
