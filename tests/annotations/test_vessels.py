"""Vessel masks: placed by their affine, whatever the order of their array, with the values they came with."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from aneurysm.cache.metadata import read_document
from aneurysm.labels import UNKNOWN_VESSEL
from aneurysm.rawdata.masks import find_masks
from tests.support.acquisition import Acquisition, acquire, rotation
from tests.support.cached import CachedImage, Outcome, run
from tests.support.pattern import anatomy
from tests.support.series import new_uid, write_series
from tests.support.specs import write_spec
from tests.support.trees import RsnaTree, mask_image, write_nifti_by_hand

UID = new_uid("vessels")


@pytest.fixture
def tree(tmp_path) -> RsnaTree:
    return RsnaTree(tmp_path / "data")


def _write(tree: RsnaTree, acquisition: Acquisition) -> None:
    tree.declare(UID, "CTA")
    pattern = anatomy(acquisition.centre, acquisition.extent_mm)
    write_series(tree.folder(UID), acquisition, pattern, uid=UID)


def _vessel_value(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Which mask value stands at LPS points: balls and a bar, one each of the 13 values would crowd the head."""
    relative = points - centre
    value = np.zeros(points.shape[:-1], dtype=np.uint8)
    for number, offset, radius in (
        (13, (0, 0, 0), 3.5),
        (6, (8, -3, -4), 3.0),
        (5, (-8, -3, -4), 3.0),
        (2, (0, 7, 5), 3.2),
    ):
        value[np.linalg.norm(relative - np.array(offset), axis=-1) < radius] = number
    bar = (np.abs(relative[..., 1] + 8) < 2) & (np.abs(relative[..., 2] - 6) < 2) & (np.abs(relative[..., 0] - 5) < 5)
    value[bar] = 10
    return value


def _surely(points: np.ndarray, centre: np.ndarray, radius_mm: float) -> np.ndarray:
    """Where the value is the same all around: a nearest neighbour can't be blamed for the rim."""
    here = _vessel_value(points, centre)
    sure = np.ones(here.shape, dtype=bool)
    directions = np.array(np.meshgrid(*[(-1, 0, 1)] * 3)).reshape(3, -1).T
    for direction in directions:
        sure &= _vessel_value(points + direction * radius_mm, centre) == here
    return sure


def _grid_of(acquisition: Acquisition) -> np.ndarray:
    """Affine (i, j, k) -> LPS of the acquisition's own voxels."""
    affine = np.eye(4)
    affine[:3, 0] = acquisition.row_direction * acquisition.spacing_mm[1]
    affine[:3, 1] = acquisition.column_direction * acquisition.spacing_mm[0]
    affine[:3, 2] = acquisition.positions[1] - acquisition.positions[0]
    affine[:3, 3] = acquisition.positions[0]
    return affine


def _reordered(affine: np.ndarray, size: tuple[int, int, int], order, flips) -> tuple[np.ndarray, tuple]:
    """The same voxels with axes permuted and flipped."""
    columns, origin = affine[:3, :3].copy(), affine[:3, 3].copy()
    for axis in range(3):
        if flips[axis]:
            origin += columns[:, axis] * (size[axis] - 1)
            columns[:, axis] *= -1
    new = np.eye(4)
    new[:3, :3], new[:3, 3] = columns[:, order], origin
    return new, tuple(size[axis] for axis in order)


def _mask(affine: np.ndarray, size: tuple[int, int, int], centre: np.ndarray) -> np.ndarray:
    """(k, j, i) values of the vessels on a grid."""
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    return np.ascontiguousarray(_vessel_value(points, centre).transpose(2, 1, 0))


def _assert_vessels(image: CachedImage, centre: np.ndarray, radius_mm: float) -> None:
    vessels = image.vessels()
    assert vessels is not None, "no vessel mask was cached"
    assert vessels.dtype == np.uint8
    assert vessels.shape == image.stored.shape
    points = image.centres()
    sure = _surely(points, centre, radius_mm)
    truth = _vessel_value(points, centre)
    assert {2, 5, 6, 10, 13} <= set(np.unique(truth[sure])), "the test must see every vessel"
    assert np.array_equal(vessels[sure], truth[sure])
    assert set(np.unique(vessels)) <= {0, 2, 5, 6, 10, 13}, "nearest neighbour: no value between two others"


ORDERS = [
    pytest.param((0, 1, 2), (False, False, False), id="in DICOM's own order"),
    pytest.param((0, 1, 2), (True, True, False), id="in NIfTI's usual order"),
    pytest.param((2, 0, 1), (False, True, True), id="permuted and flipped"),
    pytest.param((1, 2, 0), (True, False, True), id="permuted the other way"),
]


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("order, flips", ORDERS)
def test_a_mask_is_placed_by_its_affine(tree, order, flips, nested):
    acquisition = acquire(gap_mm=1.2, spacing_mm=(0.9, 0.8), shape=(36, 40), slices=22)
    _write(tree, acquisition)
    affine, size = _reordered(_grid_of(acquisition), (40, 36, 22), list(order), flips)
    tree.write_mask(UID, mask_image(_mask(affine, size, acquisition.centre), affine), nested=nested)
    image = run(tree.write_tables()).image(UID)
    _assert_vessels(image, acquisition.centre, radius_mm=0.8)


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_a_mask_of_an_oblique_series_in_another_plane_is_placed(tree, plane):
    turn = rotation((0.2, 1, 0.4), 12)
    acquisition = acquire(plane, turn=turn, slices=30, shape=(34, 36))
    _write(tree, acquisition)
    affine, size = _reordered(_grid_of(acquisition), (36, 34, 30), [2, 1, 0], (True, False, True))
    tree.write_mask(UID, mask_image(_mask(affine, size, acquisition.centre), affine))
    _assert_vessels(run(tree.write_tables()).image(UID), acquisition.centre, radius_mm=0.9)


def test_a_mask_on_a_grid_of_its_own_is_placed(tree):
    """Seven masks differ in shape from their series."""
    acquisition = acquire(slices=26)
    _write(tree, acquisition)
    affine = np.eye(4)
    affine[:3, :3] = rotation((1, 1, 1), 25) @ np.diag([-0.7, 0.8, 0.9])
    size = (50, 46, 44)
    affine[:3, 3] = acquisition.centre - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    tree.write_mask(UID, mask_image(_mask(affine, size, acquisition.centre), affine))
    _assert_vessels(run(tree.write_tables()).image(UID), acquisition.centre, radius_mm=0.75)


def test_a_mask_written_without_itk_is_placed(tree):
    """ITK reads what ITK wrote, even if both were wrong: this file is made byte by byte, sform only."""
    acquisition = acquire(slices=26)
    _write(tree, acquisition)
    affine, size = _reordered(_grid_of(acquisition), (28, 32, 26), [0, 1, 2], (True, True, False))
    path = tree.root / "segmentations" / f"{UID}_cowseg.nii"
    write_nifti_by_hand(path, _mask(affine, size, acquisition.centre), affine)
    _assert_vessels(run(tree.write_tables()).image(UID), acquisition.centre, radius_mm=0.8)


def test_a_mask_that_covers_a_part_leaves_the_rest_empty(tree):
    acquisition = acquire(slices=26)
    _write(tree, acquisition)
    affine = _grid_of(acquisition)
    affine[:3, 3] += affine[:3, 2] * 10
    tree.write_mask(UID, mask_image(_mask(affine, (28, 32, 16), acquisition.centre), affine))
    image = run(tree.write_tables()).image(UID)
    vessels = image.vessels()
    covered = image.centres()[..., 2] > acquisition.positions[10, 2] - 0.5
    assert (vessels[~covered] == 0).all()
    assert (vessels[covered] > 0).any()


def test_a_mask_is_cut_to_the_box_of_the_spec(tree, tmp_path):
    """A box leaves out the neck: the vessels in it must not cost those of the head their labels."""
    acquisition = acquire(slices=26)
    _write(tree, acquisition)
    affine = _grid_of(acquisition)
    tree.write_mask(UID, mask_image(_mask(affine, (28, 32, 26), acquisition.centre), affine))
    spec = write_spec(tmp_path / "box.toml", region_mm=(13.0, 30.0, 26.0))
    image = run(tree.write_tables(), spec=str(spec)).image(UID)
    vessels = image.vessels()
    assert vessels is not None, image.meta["decisions"]
    sure = _surely(image.centres(), acquisition.centre, 0.8)
    assert np.array_equal(vessels[sure], _vessel_value(image.centres(), acquisition.centre)[sure])
    assert {2, 10, 13} <= set(np.unique(vessels))


def assert_not_taken(tree: RsnaTree) -> Outcome:
    """The series must be cached in any case, without a mask, and say why."""
    outcome = run(tree.write_tables())
    image = outcome.image(UID)
    assert image.vessels() is None
    assert any("vessel" in code or "mask" in code for code in image.codes), image.meta["decisions"]
    return outcome


def test_a_mask_elsewhere_in_the_patient_is_not_taken(tree):
    acquisition = acquire(slices=12)
    _write(tree, acquisition)
    affine = _grid_of(acquisition)
    values = _mask(affine, (28, 32, 12), acquisition.centre)
    affine[:3, 3] += 500
    tree.write_mask(UID, mask_image(values, affine))
    assert_not_taken(tree)


def test_a_mask_that_can_not_be_read_is_not_taken(tree):
    _write(tree, acquire(slices=12))
    path = tree.root / "segmentations" / f"{UID}_cowseg.nii"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a NIfTI file" * 40)
    assert_not_taken(tree)


def test_a_mask_with_values_that_mean_nothing_is_not_taken_as_vessels(tree):
    """A float image, or another segmentation: values beyond 13."""
    acquisition = acquire(slices=12)
    _write(tree, acquisition)
    affine = _grid_of(acquisition)
    values = _mask(affine, (28, 32, 12), acquisition.centre) + 100
    tree.write_mask(UID, mask_image(values, affine))
    assert_not_taken(tree)


def test_a_series_without_a_mask_has_none(tree):
    _write(tree, acquire(slices=12))
    assert run(tree.write_tables()).image(UID).vessels() is None


def test_a_mask_of_floating_point_whole_numbers_is_taken(tree):
    acquisition = acquire(slices=26)
    _write(tree, acquisition)
    affine = _grid_of(acquisition)
    image = mask_image(_mask(affine, (28, 32, 26), acquisition.centre), affine)
    tree.write_mask(UID, sitk.Cast(image, sitk.sitkFloat32))
    _assert_vessels(run(tree.write_tables()).image(UID), acquisition.centre, radius_mm=0.8)


def test_of_several_masks_of_a_series_the_first_known_place_counts(tmp_path):
    folder = tmp_path / "segmentations"
    for name in ("1.nii.gz", "1/1.nii", "1/1.nii.gz", "2/2.nii.gz", "3.nii", "3/3.nii", "4/5.nii"):
        path = folder / name.replace(".nii", "_cowseg.nii")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "6_cowseg.nii").mkdir()
    (folder / "3.nii").touch()
    found = {uid: path.relative_to(folder).as_posix() for uid, path in find_masks(tmp_path).items()}
    assert found == {"1": "1/1_cowseg.nii", "2": "2/2_cowseg.nii.gz", "3": "3_cowseg.nii"}
    assert find_masks(tmp_path / "absent") == {}


BALLS = {3: (-6, 0, -4), 4: (6, 0, -4), 9: (-8, -4, 3), 10: (8, -4, 3), 2: (0, 6, 0)}
"""Values of RSNA's masks and where their vessels lie about the middle, LPS mm: right is at negative x."""


def _balls(acquisition: Acquisition, values: dict[int, tuple[int, int, int]]) -> sitk.Image:
    affine = _grid_of(acquisition)
    index = np.stack(np.meshgrid(np.arange(28), np.arange(32), np.arange(26), indexing="ij"), axis=-1)
    points = index @ affine[:3, :3].T + affine[:3, 3] - acquisition.centre
    mask = np.zeros(points.shape[:-1], np.uint8)
    for value, offset in values.items():
        mask[np.linalg.norm(points - np.array(offset), axis=-1) < 3] = value
    return mask_image(np.ascontiguousarray(mask.transpose(2, 1, 0)), affine)


def test_a_mask_of_0_and_1_says_where_vessels_are_and_not_which(tree):
    acquisition = acquire(slices=26)
    _write(tree, acquisition)
    tree.write_mask(UID, _balls(acquisition, dict.fromkeys((1,), (6, 0, -4))))
    image = run(tree.write_tables()).image(UID)
    assert np.unique(image.vessels()).tolist() == [0, UNKNOWN_VESSEL]
    middle = image.centres()[image.vessels() > 0].mean(axis=0) - acquisition.centre
    assert np.allclose(middle, (6, 0, -4), atol=0.6)
    assert "mask_without_sites" in image.codes
    assert "mask_placed" not in image.codes
    assert read_document(image.path).own.head_and_vessels().from_mask


def test_the_masks_of_the_data_set_have_right_on_the_right(tree):
    acquisition = acquire(slices=26)
    _write(tree, acquisition)
    tree.write_mask(UID, _balls(acquisition, BALLS))
    image = run(tree.write_tables()).image(UID)
    assert "mask_placed" in image.codes
    assert np.unique(image.vessels()).tolist() == [0, *sorted(BALLS)]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="no vessel"),
        pytest.param({2: (0, 6, 0)}, id="0 and 2"),
        pytest.param({255: (0, 6, 0)}, id="0 and 255"),
        pytest.param({3: (6, 0, -4), 4: (-6, 0, -4), 2: (0, 6, 0)}, id="sides swapped"),
        # TopCoW's order: 2 and 3 are the posterior cerebral arteries, 4 and 6 the carotids, 8 and 9 their branches.
        pytest.param({1: (0, 6, 0), 2: (-6, 6, 3), 3: (6, 6, 3), 4: (-7, -3, 0), 6: (7, -3, 0)}, id="another order"),
    ],
)
def test_a_mask_of_unknown_meaning_is_not_taken(tree, values):
    acquisition = acquire(slices=26)
    _write(tree, acquisition)
    tree.write_mask(UID, _balls(acquisition, values))
    outcome = assert_not_taken(tree)
    assert "mask_unusable" in outcome.image(UID).codes
