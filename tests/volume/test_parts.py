"""Several parts in one volume: each voxel is where it was taken, and what no slice showed is air."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aneurysm.dicom.geometry import SliceGeometry
from aneurysm.spec import load_spec
from aneurysm.volume.grid import lay_grid
from aneurysm.volume.parts import Coverage, OtherPart, PartMerger
from tests.support.acquisition import Acquisition, acquire
from tests.support.cached import CachedImage, cached
from tests.support.pattern import anatomy
from tests.support.series import new_uid, write_series
from tests.support.truth import assert_frame, assert_shows

UID = new_uid("several parts")
UPPER = acquire(slices=18, gap_mm=2.0, shape=(44, 44), spacing_mm=(1.2, 1.2), middle=(0, 0, 40))
PATTERN = anatomy(np.array([0, 0, 15.0]), 90.0)
AIR = -1000.0


def below(gap_mm: float, slices: int, *, from_upper_mm: float, **options: object) -> Acquisition:
    top = UPPER.positions[:, 2].min() - from_upper_mm
    middle = (0, 0, top - (slices - 1) * gap_mm / 2)
    return acquire(
        slices=slices, gap_mm=gap_mm, middle=middle, **{"shape": (44, 44), "spacing_mm": (1.2, 1.2), **options}
    )


def volume(tmp_path, *blocks: Acquisition, modality: str = "CT") -> CachedImage:
    for number, block in enumerate(blocks):
        write_series(
            tmp_path / "s", block, PATTERN, uid=UID, label=str(number), modality=modality, first_number=number * 99
        )
    image = cached(tmp_path / "s")
    assert "several_parts" in image.codes
    assert_frame(image)
    return image


@pytest.mark.parametrize("turn", [0, 1], ids=["largest first", "largest last"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"tilt_deg": 15.0}, id="tilted"),
        pytest.param({"tilt_deg": -22.0, "reverse": True}, id="tilted the other way"),
        pytest.param({"spacing_mm": (0.9, 1.5), "shape": (60, 36)}, id="another matrix and spacing"),
    ],
)
def test_both_parts_show_the_patient_where_he_lay(tmp_path, options, turn):
    lower = below(1.5, 16, from_upper_mm=3.0, **options)
    image = volume(tmp_path, *[UPPER, lower][:: 1 - 2 * turn])
    assert_shows(image, UPPER, PATTERN)
    outside = UPPER.positions[:, 2].min() - 2.0
    assert_shows(image, lower, PATTERN, where=image.centres()[..., 2] < outside, lossy=2.0)


def test_a_gap_between_parts_is_interpolated_as_one_within_a_stack(tmp_path):
    """Both are upright here, so that nothing but the gap plays a part: a ramp comes through exactly."""
    ramp = replace(PATTERN, waves=(), blobs=())
    lower = below(1.5, 16, from_upper_mm=6.0, spacing_mm=(1.3, 1.3))
    for number, block in enumerate((UPPER, lower)):
        write_series(tmp_path / "s", block, ramp, uid=UID, label=str(number), first_number=number * 99)
    image = cached(tmp_path / "s")
    points = image.centres()
    within = (np.abs(points[..., :2]) < 20).all(axis=-1)
    low, high = lower.positions[:, 2].max(), UPPER.positions[:, 2].min()
    gap = within & (points[..., 2] > low) & (points[..., 2] < high)
    assert gap.any()
    assert np.abs(image.physical[gap] - ramp(points[gap])).max() < 3.0


def test_where_parts_diverge_beyond_the_limit_there_is_air(tmp_path):
    """At the front of the head the planes part by 2 x tan(25 deg) x 26 mm more than at its back."""
    lower = below(1.5, 16, from_upper_mm=6.0, tilt_deg=25.0)
    image = volume(tmp_path, UPPER, lower)
    points = image.centres()
    edge = UPPER.positions[:, 2].min()
    top = lower.positions[-1] if lower.positions[-1, 2] > lower.positions[0, 2] else lower.positions[0]
    normal = lower.normal * np.sign(lower.normal[2])
    above = (points - top) @ normal
    under = edge - points[..., 2]
    within = (np.abs(points[..., 0]) < 20) & (np.abs(points[..., 1]) < 22)
    wedge = within & (under > 2.0) & (above > 2.0) & (under + above > 9.0)
    close = within & (under > 0.5) & (above > 0.5) & (under + above < 7.0)
    assert wedge.any()
    assert (image.physical[wedge] == AIR).all()
    assert close.any()
    assert np.abs(image.physical[close] - PATTERN(points[close])).max() < 40.0


def test_where_parts_overlap_the_largest_one_counts(tmp_path):
    """The other one is 500 HU brighter, and shows beyond the largest only."""
    lower = below(1.5, 14, from_upper_mm=-9.0, tilt_deg=10.0)
    write_series(tmp_path / "s", UPPER, PATTERN, uid=UID)
    write_series(tmp_path / "s", lower, lower.sample(PATTERN) + 500, uid=UID, label="lower", first_number=99)
    image = cached(tmp_path / "s")
    assert_shows(image, UPPER, PATTERN)


def test_parts_of_mr_are_normalised_together(tmp_path):
    lower = below(1.5, 16, from_upper_mm=3.0, tilt_deg=15.0)
    image = volume(tmp_path, UPPER, lower, modality="MR")
    assert_shows(image, UPPER, PATTERN)


def one_slab(last_mm: float, size: int, turned_deg: float = 0.0, origin=(0.0, 0.0, 0.0)) -> SliceGeometry:
    angle = np.radians(turned_deg)
    axes = np.array([[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, -np.sin(angle), np.cos(angle)]])
    places = np.linspace(0, last_mm, 5)
    return SliceGeometry(axes, np.array(origin, float), places, np.zeros((5, 2)), (1.0, 1.0))


def test_coverage_tells_before_behind_and_beside():
    coverage = Coverage(one_slab(8.0, 5), (10, 20))
    beyond = coverage.beyond_mm(
        np.array([-3.0, 4.0, 9.5, 4.0, 4.0]), np.array([5, 5, 5, 9.6, 5.0]), np.array([5, 5, 5, 5, 19.4])
    )
    assert beyond.tolist() == pytest.approx([-3.0, 0.0, 1.5, np.nan, 0.0], nan_ok=True)


def test_local_coordinates_are_along_slices_rows_and_columns():
    coverage = Coverage(one_slab(8.0, 5, 90.0, (1, 2, 3)), (10, 20))
    # Turned by 90 degrees about x: rows run to +z, the normal to -y.
    assert coverage.local_mm(np.array([4.0, -5.0, 5.0])) == pytest.approx([7.0, 2.0, 3.0])


def test_a_plane_is_put_together_by_hand():
    """Two constant parts, 100 above and 200 below, 4 mm apart: 4, 3, ... mm below the upper one."""
    spec = load_spec("rsna-1mm")
    upper, lower = one_slab(8.0, 5), one_slab(8.0, 5, origin=(0, 0, -12.0))
    low, high = np.array([-12.5, -0.5, -0.5]), np.array([8.5, 9.5, 9.5])
    grid = lay_grid(upper.origin, upper.axes[[2, 1, 0]], low, high, spec)
    own = lay_grid(lower.origin, lower.axes[[2, 1, 0]], np.array([-5.0, -0.5, -0.5]), np.array([13.0, 9.5, 9.5]), spec)
    shape = tuple(own.axes[i].size for i in (0, 2, 1))
    other = OtherPart(Coverage(lower, (10, 10)), own, np.full(shape, 200, np.float32))
    merger = PartMerger(Coverage(upper, (10, 10)), grid, [other], reach_mm=5.0)
    main = np.full((grid.axes[2].size, grid.axes[1].size), 100, np.float32)
    values = {}
    for k, place in enumerate(grid.axes[0].positions_mm):
        plane = merger.plane(k, main.copy() if place >= -5 else None)
        assert (plane == plane[0, 0]).all()
        values[round(float(place), 3)] = float(plane[0, 0])
    assert [values[z] for z in (8.0, 0.0, -1.0, -2.0, -3.0, -4.0, -12.0)] == [100, 100, 125, 150, 175, 200, 200]
    apart = PartMerger(Coverage(upper, (10, 10)), grid, [other], reach_mm=3.0)
    # Too wide: each slice stands for half a gap (1 mm) of its own stack, and between is air.
    planes = [float(apart.plane(k, main.copy())[0, 0]) for k, z in enumerate(grid.axes[0].positions_mm) if -4 <= z <= 0]
    assert planes == [200, 200, 0, 100, 100]
