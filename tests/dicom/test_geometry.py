"""Where things lie: planes, directions, positions, tilt, spacing. A known point keeps its known value."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

from tests.support.acquisition import LEFT, PLANES, POSTERIOR, SUPERIOR, Acquisition, acquire, rotation
from tests.support.cached import CachedImage, cached, run
from tests.support.pattern import anatomy, lone_blob
from tests.support.series import numbers, write_series
from tests.support.truth import assert_frame, assert_shows, centroid_lps


def assert_shown(folder, acquisition: Acquisition, **options) -> CachedImage:
    """Write, cache, and check the pattern everywhere."""
    at_least = options.pop("at_least", 200)
    base = 300.0 if options.get("modality", "CT") == "CT" else 700.0
    pattern = anatomy(acquisition.centre, acquisition.extent_mm, base)
    write_series(folder, acquisition, pattern, **options)
    image = cached(folder)
    assert_frame(image)
    assert_shows(image, acquisition, pattern, at_least=at_least)
    return image


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("reverse", [False, True], ids=["along the normal", "against the normal"])
@pytest.mark.parametrize("plane", PLANES)
def test_a_plane_in_either_direction_shows_the_pattern(tmp_path, plane, reverse, modality):
    acquisition = acquire(plane, reverse=reverse, spacing_mm=(0.9, 1.1), gap_mm=1.3)
    image = assert_shown(tmp_path / "s", acquisition, modality=modality)
    assert image.meta["source"]["plane"] == plane
    assert image.meta["source"]["shape"] == [24, 32, 28]
    assert np.allclose(image.meta["source"]["spacing_mm"], [1.3, 0.9, 1.1], atol=1e-4)
    assert np.allclose(image.meta["source"]["orientation"], acquisition.orientation, atol=1e-6)


def test_left_stays_left_up_stays_up_and_front_stays_front(tmp_path):
    """Without any of the machinery above: three marks, each nearest to its own face of the array."""
    acquisition = acquire("axial", shape=(40, 40), slices=40)
    values = np.zeros((40, 40, 40))
    values[20, 20, 33] = 1000  # the last columns are the patient's left
    values[20, 6, 20] = 1500  # the first rows are anterior
    values[33, 20, 20] = 1900  # the last slices are superior
    write_series(tmp_path / "s", acquisition, values)
    stored = cached(tmp_path / "s").stored
    by_value = sorted(np.argwhere(stored > 700).tolist(), key=lambda zyx: stored[tuple(zyx)])
    assert by_value == [[20, 20, 33], [20, 6, 20], [33, 20, 20]]


@pytest.mark.parametrize(
    "directions",
    [
        pytest.param((LEFT, POSTERIOR), id="head first supine"),
        pytest.param((-LEFT, -POSTERIOR), id="head first prone"),
        pytest.param((-LEFT, POSTERIOR), id="feet first supine"),
        pytest.param((LEFT, -POSTERIOR), id="feet first prone"),
        pytest.param((POSTERIOR, -LEFT), id="head first decubitus right"),
        pytest.param((-POSTERIOR, LEFT), id="head first decubitus left"),
        pytest.param((POSTERIOR, LEFT), id="rows and columns swapped"),
        pytest.param((LEFT, SUPERIOR), id="coronal upside down"),
        pytest.param((-LEFT, -SUPERIOR), id="coronal from behind"),
        pytest.param((-POSTERIOR, -SUPERIOR), id="sagittal from the right"),
        pytest.param((SUPERIOR, -POSTERIOR), id="sagittal lying down"),
    ],
)
def test_the_patients_position_on_the_table_makes_no_difference(tmp_path, directions):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.PatientPosition = "FFDL"  # must not be looked at: ImageOrientationPatient has all there is

    assert_shown(tmp_path / "s", acquire(directions, slices=20), edit=edit)


@pytest.mark.parametrize("degrees", [3, 20, 35])
@pytest.mark.parametrize("plane", PLANES)
def test_obliqueness_stays_in_the_affine(tmp_path, plane, degrees):
    turn = rotation((1.0, -0.7, 0.4), degrees)
    acquisition = acquire(plane, turn=turn, spacing_mm=(0.8, 0.8), shape=(34, 36))
    image = assert_shown(tmp_path / "s", acquisition)
    axes = image.affine[:3, :3]
    ours = np.stack([acquisition.row_direction, acquisition.column_direction, acquisition.normal], axis=1)
    assert np.allclose(np.sort(np.abs(axes.T @ ours).ravel())[-3:], 1, atol=1e-6), "voxels were rotated"


@pytest.mark.parametrize(
    "spacing_mm, gap_mm, shape, slices",
    [
        pytest.param((1.0, 1.0), 1.0, (24, 24), 24, id="already at the target"),
        pytest.param((0.45, 0.45), 0.5, (64, 56), 50, id="finer than the target"),
        pytest.param((0.4, 0.7), 2.5, (60, 40), 12, id="fine in plane and coarse across"),
        pytest.param((2.2, 1.4), 0.6, (16, 24), 44, id="coarse in plane and fine across"),
        pytest.param((0.9375, 0.9375), 5.0, (30, 32), 8, id="thick slices"),
        pytest.param((3.1, 2.7), 3.9, (14, 15), 9, id="coarser than the target everywhere"),
    ],
)
def test_any_spacing_shows_the_pattern_on_the_target_grid(tmp_path, spacing_mm, gap_mm, shape, slices):
    acquisition = acquire(spacing_mm=spacing_mm, gap_mm=gap_mm, shape=shape, slices=slices)
    image = assert_shown(tmp_path / "s", acquisition)
    extent = np.array([slices * gap_mm, shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]])
    assert image.stored.shape == tuple(np.ceil(extent - 1e-6).astype(int)), "ceil(extent / spacing)"
    middle = image.lps((np.array(image.stored.shape) - 1) / 2)
    assert np.allclose(middle, acquisition.centre, atol=1e-3), "the grid is centred on the field of view"


@pytest.mark.parametrize("gap_mm", [0.7, 2.0, 5.0])
@pytest.mark.parametrize("tilt_deg", [-25, 5, 18])
def test_gantry_tilt_is_taken_out_rightly(tmp_path, tilt_deg, gap_mm):
    slices = round(24 / gap_mm)
    acquisition = acquire(tilt_deg=tilt_deg, gap_mm=gap_mm, slices=slices, shape=(46, 40))
    image = assert_shown(tmp_path / "s", acquisition)
    assert abs(image.meta["source"]["tilt_deg"]) == pytest.approx(abs(tilt_deg), abs=0.01)


@pytest.mark.parametrize("tilt_deg", [-15, 22])
def test_a_tilted_stack_keeps_its_whole_field_of_view_and_is_air_beyond_it(tmp_path, tilt_deg):
    acquisition = acquire(tilt_deg=tilt_deg, gap_mm=4, slices=12, shape=(32, 32))
    pattern = anatomy(acquisition.centre, acquisition.extent_mm, base=600)
    write_series(tmp_path / "s", acquisition, pattern)
    image = cached(tmp_path / "s")
    corners = image.zyx(acquisition.points()[:, [0, 0, -1, -1], [0, -1, 0, -1]])
    assert (corners > -0.51).all()
    assert (corners < np.array(image.stored.shape) - 0.49).all(), "an acquired pixel is outside the volume"
    # A voxel that is beyond the edge of every slice near its height was never seen.
    points = image.centres()
    seen = np.zeros(image.stored.shape, dtype=bool)
    for position in acquisition.positions:
        offset = (points - position) @ acquisition.column_direction
        near = np.abs((points - position) @ acquisition.normal) < 4.5
        seen |= near & (offset > -1.6) & (offset < 32.6)
    assert (~seen).sum() > 100
    assert (image.physical[~seen] == -1000).all(), "air is expected outside a tilted slice's field of view"


@pytest.mark.parametrize("tilt_deg", [0, 12])
@pytest.mark.parametrize("turn_deg", [0, 9])
def test_uneven_slices_are_interpolated_at_their_true_positions(tmp_path, turn_deg, tilt_deg):
    steps = np.random.default_rng(3).uniform(0.6, 2.4, 21)
    turn = rotation((0.3, 1.0, 0.2), turn_deg)
    offsets = np.concatenate([[0], np.cumsum(steps)])
    assert_shown(tmp_path / "s", acquire(offsets_mm=offsets, tilt_deg=tilt_deg, turn=turn, shape=(40, 30)))


def test_a_change_of_slice_thickness_midway_is_followed(tmp_path):
    """Head CT: thin slices through the skull base, thicker ones above."""
    offsets = np.concatenate([np.arange(0, 12, 1.5), np.arange(12, 30, 3.0)])
    assert_shown(tmp_path / "s", acquire(offsets_mm=offsets))


@pytest.mark.parametrize("plane", PLANES)
def test_slices_are_ordered_by_position_not_by_number_or_name(tmp_path, plane):
    """InstanceNumber, SliceLocation and file names all tell another story."""
    acquisition = acquire(plane, gap_mm=1.5, slices=20)
    order = np.random.default_rng(8).permutation(20)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.InstanceNumber = int(order[index])
        dataset.SliceLocation = numbers([float(-order[index])])[0]

    image = assert_shown(tmp_path / "s", acquisition, edit=edit)
    assert not image.codes & {"dropped_slices", "duplicate_slices", "several_volumes"}


def test_spacing_between_slices_and_slice_thickness_may_lie(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.SpacingBetweenSlices = numbers([18.0])[0]
        dataset.SliceThickness = numbers([7.0])[0]

    image = assert_shown(tmp_path / "s", acquire(gap_mm=0.498, slices=48), edit=edit)
    assert image.stored.shape[0] == 24


@pytest.mark.parametrize("middle", [(0, 0, 0), (-300.5, 811.25, -1402.125)], ids=["isocentre", "far off"])
def test_the_origin_may_be_anywhere(tmp_path, middle):
    assert_shown(tmp_path / "s", acquire(middle=middle, plane="sagittal"))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"spacing_mm": (0.45, 0.6), "shape": (90, 70)}, id="finer than the target"),
        pytest.param({"plane": "coronal", "reverse": True}, id="coronal reversed"),
        pytest.param({"plane": "sagittal", "turn": rotation((1, 1, 2), 17)}, id="sagittal oblique"),
        pytest.param({"tilt_deg": 19, "gap_mm": 2.5, "slices": 18, "shape": (60, 40)}, id="tilted"),
        pytest.param({"gap_mm": 2.9, "slices": 15, "tilt_deg": -11, "turn": rotation((0, 1, 1), 8), "shape": (56, 44)},
                     id="tilted oblique thick"),
    ],
)  # fmt: skip
def test_the_centre_of_a_marked_blob_is_found_within_a_tenth_of_a_millimetre(tmp_path, options):
    acquisition = acquire(**{"shape": (42, 40), "slices": 40, **options})
    # Off the grid and off the middle; the blob's visible part (3.5 sigma) fits in.
    target = acquisition.centre + np.array([3.13, -2.77, 1.41])
    pattern = lone_blob(target, sigma_mm=3.0)
    write_series(tmp_path / "s", acquisition, pattern)
    image = cached(tmp_path / "s")
    found = centroid_lps(image, pattern.blobs[0], pattern.base)
    assert np.linalg.norm(found - target) < 0.1, f"off by {(found - target).round(3)} mm"


def test_several_series_in_one_run_do_not_touch_each_other(tmp_path):
    truth = {}
    for plane in PLANES:
        acquisition = acquire(plane, slices=12)
        pattern = anatomy(acquisition.centre, base=200 + 50 * len(plane))
        written = write_series(tmp_path / "data" / plane, acquisition, pattern)
        truth[written.uid] = (acquisition, pattern)
    outcome = run(tmp_path / "data")
    assert (outcome.cached, outcome.rejected, outcome.failed) == (3, 0, 0)
    for uid, (acquisition, pattern) in truth.items():
        assert_shows(outcome.image(uid), acquisition, pattern)
