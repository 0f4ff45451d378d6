"""What a projection of CT leaves out, keeps, and shows in which greys."""

from __future__ import annotations

import numpy as np

from aneurysm.volume.highlight import highlight_window, spare_points, without_bone

AFFINE = np.array([[0, 0, 1.0, -10], [0, 2.0, 0, -20], [1.0, 0, 0, -30], [0, 0, 0, 1]])


def test_without_bone_a_vessel_behind_it_is_the_brightest() -> None:
    voxels = np.full((4, 3, 3), 40, np.int16)
    voxels[0], voxels[2, 1, 1] = 1200, 350
    bone = voxels > 700
    soft = without_bone(voxels, bone, -1000)
    assert soft.dtype == voxels.dtype
    assert soft.max(axis=0).tolist() == [[40, 40, 40], [40, 350, 40], [40, 40, 40]]
    assert voxels.max() == 1200


def test_points_are_spared_within_their_radius_alone() -> None:
    bone = np.ones((20, 20, 20), bool)
    place = AFFINE @ [10.3, 8, 19, 1]  # near the far face
    spare_points(bone, AFFINE, [place[:3]], 4.0)
    z, y, x = np.ogrid[:20, :20, :20]
    near = (z - 10.3) ** 2 + (2 * (y - 8)) ** 2 + (x - 19) ** 2 <= 16
    assert near.sum() > 50
    assert np.array_equal(bone, ~near)


def test_points_outside_of_the_volume_spare_nothing() -> None:
    bone = np.ones((5, 5, 5), bool)
    spare_points(bone, AFFINE, [(500.0, 0.0, 0.0), (0.0, -900.0, 0.0)], 6.0)
    spare_points(bone, AFFINE, [], 6.0)
    assert bone.all()


def test_the_window_reaches_from_brain_to_vessels() -> None:
    projection = np.full((100, 100), -1000.0, np.float32)
    projection[20:80, 20:80] = 60
    projection[50:52, 20:80] = 400
    assert highlight_window(projection) == (60, 400)


def test_the_window_is_never_empty() -> None:
    assert highlight_window(np.full((4, 4), -1000, np.float32)) == (0, 150)
    low, high = highlight_window(np.full((4, 4), 30, np.float32))
    assert (low, high) == (30, 180)
