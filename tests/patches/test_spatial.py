"""Coordinates and masks go where the voxels go: flips and quarter turns to the voxel, the rest by centres of mass."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aneurysm.patches.augment_config import Affine, AugmentConfig, Elastic, Flip
from aneurysm.patches.augment_draws import draw_augmentation, rotation_zyx
from aneurysm.patches.spatial import Geometry, controls_shape, displacement_at, displacement_on_grid
from tests.support.draws import still

CPU = torch.device("cpu")
SHAPE = (8, 10, 12)
ONE_MM = (1.0, 1.0, 1.0)


def _geometry(*draws, shape=SHAPE, out_shape=None, spacing_mm=ONE_MM, controls_mm=32.0):
    return Geometry(draws, shape, out_shape or shape, spacing_mm, controls_mm, CPU)


def _numbered(shape=SHAPE, n=1):
    return torch.arange(n * math.prod(shape), dtype=torch.int16).view(n, 1, *shape)


def _all_voxels(shape):
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"), dim=-1).view(-1, 3)


@pytest.mark.parametrize("flips", list(product([False, True], repeat=3)))
def test_flips_move_whole_voxels_and_every_coordinate_with_its_voxel(flips):
    image = _numbered()
    geometry = _geometry(still(flips=flips))
    moved = geometry.image(image, torch.tensor([-1.0]))
    assert torch.equal(moved, image.flip([axis + 2 for axis in range(3) if flips[axis]]).float())
    z, y, x = geometry.points(torch.zeros(image.numel(), dtype=torch.int64), _all_voxels(SHAPE)).long().unbind(1)
    assert torch.equal(moved[0, 0, z, y, x], image.ravel().float())


@pytest.mark.parametrize("out_shape", [(8, 10, 12), (6, 7, 5), (1, 2, 9)])
@pytest.mark.parametrize("flips", [(False, False, False), (False, True, True)])
def test_crop_is_the_middle_whether_resampled_or_not(out_shape, flips):
    image = _numbered()
    exact = _geometry(still(flips=flips), out_shape=out_shape)
    resampled = _geometry(still(flips=flips, affine_mm=np.eye(3)), out_shape=out_shape)
    fill = torch.tensor([500.0])
    cropped = exact.image(image, fill)
    start = [(a - b) // 2 for a, b in zip(SHAPE, out_shape)]
    middle = image[0, 0][tuple(slice(a, a + n) for a, n in zip(start, out_shape))]
    assert torch.equal(cropped[0, 0], middle.flip([axis for axis in range(3) if flips[axis]]).float())
    assert torch.allclose(resampled.image(image, fill), cropped, atol=0.01)
    points = torch.rand(10, 3) * 8
    row = torch.zeros(10, dtype=torch.int64)
    assert torch.allclose(exact.points(row, points), resampled.points(row, points), atol=1e-5)


def test_nothing_drawn_leaves_coordinates_exactly_as_they_were():
    points = torch.rand(50, 3) * 12
    assert torch.equal(_geometry(still(), spacing_mm=(0.7, 0.45, 0.3)).points(torch.zeros(50).long(), points), points)


@pytest.mark.parametrize(
    "angles, dims",
    [((90, 0, 0), (2, 1)), ((0, 90, 0), (0, 2)), ((0, 0, 90), (1, 0))],
    ids=["z: left to posterior", "y: superior to left", "x: posterior to superior"],
)
def test_quarter_turns_are_exact_and_right_handed(angles, dims):
    shape = (9, 9, 9)
    image = _numbered(shape)
    geometry = _geometry(still(affine_mm=rotation_zyx(*map(math.radians, angles))), shape=shape)
    moved = geometry.image(image, torch.zeros(1))
    assert torch.allclose(moved[0, 0], torch.rot90(image[0, 0], 1, dims).float(), atol=0.01)
    # A voxel on the positive side of the first axis goes to the positive side of the second.
    before, after = torch.full((1, 3), 4.0), torch.full((1, 3), 4.0)
    before[0, dims[0]] += 3
    after[0, dims[1]] += 3
    assert torch.allclose(geometry.points(torch.tensor([0]), before), after, atol=1e-5)


def test_rotation_is_in_mm():
    # 3 voxels of 2 mm to the left turn to 12 voxels of 0.5 mm to posterior.
    image = torch.zeros(1, 1, 3, 41, 11, dtype=torch.int16)
    image[0, 0, 1, 20, 8] = 1000
    turn = still(affine_mm=rotation_zyx(math.pi / 2, 0, 0))
    geometry = _geometry(turn, shape=(3, 41, 11), spacing_mm=(1.0, 0.5, 2.0))
    moved = geometry.image(image, torch.zeros(1))
    assert torch.nonzero(moved[0, 0] > 999).tolist() == [[1, 32, 5]]
    assert torch.allclose(
        geometry.points(torch.tensor([0]), torch.tensor([[1.0, 20.0, 8.0]])), torch.tensor([[1.0, 32.0, 5.0]])
    )


def test_scale_above_one_enlarges():
    geometry = _geometry(still(affine_mm=np.eye(3) * 2.0), shape=(9, 9, 9))
    moved = geometry.points(torch.tensor([0]), torch.tensor([[4.0, 5.0, 6.0]]))
    assert moved.tolist() == [[4.0, 6.0, 8.0]]


def test_only_samples_that_drew_something_change():
    image = _numbered(n=3)
    draws = still(flips=(False, False, True)), still(), still(affine_mm=rotation_zyx(0.3, 0, 0))
    moved = _geometry(*draws).image(image, torch.zeros(3))
    assert torch.equal(moved[0], image[0].flip(3).float())
    assert torch.equal(moved[1], image[1].float())
    assert not torch.equal(moved[2], image[2].float())
    points = _geometry(*draws).points(torch.tensor([0, 1, 2]), torch.full((3, 3), 2.0))
    assert points[:2].tolist() == [[2.0, 2.0, 9.0], [2.0, 2.0, 2.0]]


def test_outside_is_air_of_each_sample():
    image = torch.full((2, 1, 16, 16, 16), 700, dtype=torch.int16)
    image[1] = 50
    fill = torch.tensor([-1000.0, 3.0])
    shrunk = still(affine_mm=np.eye(3) * 0.5)
    moved = _geometry(shrunk, shrunk, shape=(16, 16, 16)).image(image, fill)
    assert moved[:, 0, 0, 0, 0].tolist() == [-1000, 3]
    assert moved[:, 0, 8, 8, 8].tolist() == [700, 50]
    bounds = moved.flatten(1).aminmax(dim=1)
    assert (bounds.min.tolist(), bounds.max.tolist()) == ([-1000, 3], [700, 50])


def test_masks_keep_their_values_and_follow_the_nearest_voxel():
    mask = torch.zeros(1, 1, 24, 24, 24, dtype=torch.uint8)
    mask[0, 0, 6:18, 6:12, 6:18] = 13
    mask[0, 0, 6:18, 12:18, 6:18] = 2
    geometry = _geometry(still(affine_mm=rotation_zyx(0.4, 0.2, -0.3)), shape=(24, 24, 24))
    moved = geometry.mask(mask)
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) == {0, 2, 13}
    for value, at in ((13, [11.5, 8.5, 11.5]), (2, [11.5, 14.5, 11.5])):
        centre = torch.nonzero(moved[0, 0] == value).float().mean(dim=0)
        assert torch.allclose(geometry.points(torch.tensor([0]), torch.tensor([at]))[0], centre, atol=0.2)


def _blob(zyx, shape, spacing_mm, sigma_mm):
    away = (_all_voxels(shape) - torch.tensor(zyx)) * torch.tensor(spacing_mm)
    return (10000 * torch.exp(-away.square().sum(dim=1) / (2 * sigma_mm**2))).view(1, 1, *shape)


def _centre_of_mass(image):
    weights = image[0, 0].ravel()[:, None]
    return (_all_voxels(image.shape[2:]) * weights).sum(dim=0) / weights.sum()


SPACINGS = st.sampled_from([ONE_MM, (1.6, 0.8, 0.9), (0.6, 1.0, 1.2)])
MIDDLE = st.tuples(*[st.floats(-4, 4, width=32)] * 3)
FLIPS = Flip(left_right=0.5, front_back=0.5, up_down=0.5)


@given(seed=st.integers(-(2**63), 2**63 - 1), spacing_mm=SPACINGS, off_mm=MIDDLE)
@settings(max_examples=40, deadline=None)
def test_a_blob_stays_on_its_coordinate_under_affine_maps(seed, spacing_mm, off_mm):
    config = AugmentConfig(flip=FLIPS, affine=Affine(p=1, rotation_deg=(180, 180, 180), shear=0.2))
    shape, out_shape = (36, 37, 34), (30, 29, 31)
    at = [n / 2 + off / mm for n, off, mm in zip(shape, off_mm, spacing_mm)]
    geometry = _geometry(
        draw_augmentation(seed, config, (4, 4, 4)), shape=shape, out_shape=out_shape, spacing_mm=spacing_mm
    )
    image = _blob(at, shape, spacing_mm, sigma_mm=1.5).round().short()
    moved = geometry.image(image, torch.zeros(1))
    expected = geometry.points(torch.tensor([0]), torch.tensor([at]))[0]
    # A face that cuts off some of the blob's tail moves its centre of mass.
    room_mm = torch.minimum(expected + 0.5, torch.tensor(out_shape) - 0.5 - expected) * torch.tensor(spacing_mm)
    assume(bool((room_mm > 5.5).all()))
    assert (_centre_of_mass(moved) - expected).abs().max() < 0.1


@given(seed=st.integers(0, 2**63 - 1), spacing_mm=SPACINGS, off_mm=MIDDLE)
@settings(max_examples=30, deadline=None)
def test_a_blob_stays_on_its_coordinate_when_bent(seed, spacing_mm, off_mm):
    elastic = Elastic(p=1, spacing_mm=12, max_mm=1.5)
    config = AugmentConfig(flip=FLIPS, affine=Affine(p=0.5), elastic=elastic)
    shape, out_shape = (36, 37, 34), (30, 29, 31)
    at = [n / 2 + off / mm for n, off, mm in zip(shape, off_mm, spacing_mm)]
    drawn = draw_augmentation(seed, config, controls_shape(out_shape, spacing_mm, 12))
    geometry = _geometry(drawn, shape=shape, out_shape=out_shape, spacing_mm=spacing_mm, controls_mm=12)
    # A small blob: bending takes a large one's centre of mass away from where its middle goes.
    image = _blob(at, shape, spacing_mm, sigma_mm=1.0).round().short()
    moved = geometry.image(image, torch.zeros(1))
    expected = geometry.points(torch.tensor([0]), torch.tensor([at]))[0]
    assert (_centre_of_mass(moved) - expected).abs().max() < 0.5


@given(seed=st.integers(0, 2**32), spacing_mm=SPACINGS)
@settings(max_examples=20, deadline=None)
def test_coordinates_of_bent_patches_are_the_inverse_of_the_sampling_grid(seed, spacing_mm):
    # At the strongest bending that is allowed. A voxel says where it came from; from there it must come back.
    config = AugmentConfig(affine=Affine(p=1), elastic=Elastic(p=1, spacing_mm=16, max_mm=2))
    out_shape = (20, 21, 22)
    drawn = draw_augmentation(seed, config, controls_shape(out_shape, spacing_mm, 16))
    geometry = _geometry(drawn, shape=(24, 24, 24), out_shape=out_shape, spacing_mm=spacing_mm, controls_mm=16)
    came_from = (geometry._grid[0].flip(-1) + 1) * 12 - 0.5
    came_from, voxels = came_from.view(-1, 3)[::11], _all_voxels(out_shape)[::11]
    back = geometry.points(torch.zeros(len(voxels), dtype=torch.int64), came_from)
    assert (back - voxels).abs().max() < 0.02


def test_displacement_is_the_same_at_points_and_on_the_grid():
    shape, spacing_mm = (7, 9, 11), (2.0, 1.0, 0.5)
    controls = torch.randn(2, 3, *controls_shape(shape, spacing_mm, 4.0))
    grid = displacement_on_grid(controls, shape, spacing_mm, 4.0)
    assert grid.shape == (2, 3, *shape)
    for row in range(2):
        voxels = _all_voxels(shape)
        points = displacement_at(controls[row].expand(len(voxels), *controls.shape[1:]), voxels, spacing_mm, 4.0)
        assert torch.allclose(points.T.view(3, *shape), grid[row], atol=1e-5)


def test_controls_that_agree_displace_everything_alike():
    shape, spacing_mm = (9, 13, 5), (1.0, 1.0, 3.0)
    controls = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, *controls_shape(shape, spacing_mm, 4.0))
    grid = displacement_on_grid(controls, shape, spacing_mm, 4.0)
    assert torch.allclose(grid, torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1, 1).expand_as(grid), atol=1e-5)
