"""Which lesions count as in a patch: known answers at its faces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aneurysm.patches.targets import BatchLesions, inner_places, patch_targets

SHAPE = (20, 30, 40)
PRESENT = 13


def _targets(*placed, inner=None, batch_size=1, spacing_mm=(1.0, 1.0, 1.0), margin_mm=3.0, unknown=None, certain=None):
    sample, site, zyx = zip(*placed) if placed else ((), (), ())
    if unknown is None:
        unknown = torch.zeros(batch_size, 14, dtype=torch.bool)
    if certain is None:
        certain = torch.zeros(batch_size, 14, dtype=torch.bool)
    lesions = BatchLesions(
        torch.tensor(sample, dtype=torch.int64),
        torch.tensor(site, dtype=torch.int64),
        torch.tensor(zyx, dtype=torch.float32).view(-1, 3),
        torch.tensor(inner if inner is not None else zyx, dtype=torch.float32).view(-1, 3),
    )
    targets, ignore = patch_targets(lesions, unknown, certain, SHAPE, spacing_mm, margin_mm=margin_mm)
    assert targets.dtype == torch.float32
    assert ignore.dtype == torch.bool
    return [set(torch.nonzero(row).ravel().tolist()) for row in targets], [
        set(torch.nonzero(row).ravel().tolist()) for row in ignore
    ]


def test_no_lesions_mean_nothing_to_find_and_nothing_to_ignore():
    assert _targets(batch_size=2) == ([set(), set()], [set(), set()])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("far", [False, True], ids=["near face", "far face"])
@pytest.mark.parametrize(
    "depth_mm, verdict",
    [(3.01, "present"), (2.99, "cut"), (0.0, "cut"), (-2.99, "cut"), (-3.01, "absent")],
)
def test_margin_is_in_mm_from_the_face_of_the_outermost_voxel(axis, far, depth_mm, verdict):
    spacing_mm = (2.0, 0.5, 1.5)
    zyx = [n / 2 for n in SHAPE]
    inwards = depth_mm / spacing_mm[axis]
    zyx[axis] = SHAPE[axis] - 0.5 - inwards if far else -0.5 + inwards
    targets, ignore = _targets((0, 4, zyx), spacing_mm=spacing_mm)
    there = {4, PRESENT}
    assert (targets[0], ignore[0]) == {
        "present": (there, set()),
        "cut": (set(), there),
        "absent": (set(), set()),
    }[verdict]


def test_beyond_a_corner_the_distance_is_the_straight_one():
    # 2.5 mm beyond each of three faces: 4.3 mm from the patch.
    assert _targets((0, 4, (-3.0, -3.0, -3.0))) == ([set()], [set()])
    assert _targets((0, 4, (-3.0, 15.0, 20.0))) == ([set()], [{4, PRESENT}])


def test_a_cut_lesion_leaves_another_that_is_surely_there():
    inside, cut = (10.0, 15.0, 20.0), (0.0, 15.0, 20.0)
    assert _targets((0, 4, inside), (0, 7, cut)) == ([{4, PRESENT}], [{7}])
    assert _targets((0, 4, inside), (0, 4, cut)) == ([{4, PRESENT}], [set()])


def test_each_patch_has_its_own_lesions():
    inside, cut = (10.0, 15.0, 20.0), (0.0, 15.0, 20.0)
    targets, ignore = _targets((0, 1, inside), (2, 2, cut), (2, 12, cut), batch_size=3)
    assert targets == [{1, PRESENT}, set(), set()]
    assert ignore == [set(), set(), {2, 12, PRESENT}]


def test_what_is_unknown_is_ignored_unless_a_lesion_is_surely_there():
    unknown = torch.zeros(2, 14, dtype=torch.bool)
    unknown[:, [3, PRESENT]] = True
    targets, ignore = _targets((0, 3, (10.0, 15.0, 20.0)), batch_size=2, unknown=unknown)
    assert targets == [{3, PRESENT}, set()]
    assert ignore == [set(), {3, PRESENT}]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.5, 0.3)])
@pytest.mark.parametrize("place", [(0, 15, 20), (19, 0, 39), (10, 29.4, 1), (-0.5, -0.5, -0.5)])
def test_a_lesion_at_a_face_of_its_volume_is_there_in_the_patch_that_reaches_the_face(place, spacing_mm):
    inner = inner_places(np.array([place], np.float32), np.array([SHAPE]), spacing_mm)
    assert _targets((0, 4, place), inner=inner, spacing_mm=spacing_mm) == ([{4, PRESENT}], [set()])


def test_the_faces_of_the_patch_cut_it_as_before():
    """The patch is the middle of a volume that is 10 voxels longer on every side."""
    place = np.array([[1, 15, 20]], np.float32)
    inner = inner_places(place + 10, np.array([[40, 50, 60]]), (1.0, 1.0, 1.0)) - 10
    assert _targets((0, 4, (1, 15, 20)), inner=inner) == ([set()], [{4, PRESENT}])


def test_in_a_volume_thinner_than_a_lesion_it_is_put_in_the_middle():
    inner = inner_places(np.array([[0, 15, 20]], np.float32), np.array([[3, 30, 40]]), (1.0, 1.0, 1.0))
    assert inner.tolist() == [[1, 15, 20]]
