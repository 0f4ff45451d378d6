"""Points at known places of the patient come out at known places of the picture, however the axes run."""

from itertools import permutations, product

import numpy as np
import pytest

from aneurysm.report.views import letter, view

# Grid towards Superior, Posterior, Left with three different lengths and spacings.
SHAPE = (20, 30, 40)
SPACING = np.array([2.0, 1.5, 1.0])
ORIGIN = np.array([-10.0, -25.0, 7.0])


def grid() -> tuple[np.ndarray, np.ndarray]:
    """A dark volume, and its affine, (z, y, x, 1) -> LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, SPACING[2]], [0, SPACING[1], 0], [SPACING[0], 0, 0]])
    affine[:3, 3] = ORIGIN
    return np.zeros(SHAPE, np.int16), affine


def rearranged(volume, affine, order, flips):
    """The same patient in an array whose axes are permuted and flipped."""
    volume, affine = volume.transpose(order), affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            affine[:, 3] += affine[:, axis] * (volume.shape[axis] - 1)
            affine[:, axis] *= -1
            volume = np.flip(volume, axis)
    return volume, affine


def rotation(degrees, axis):
    """The rotation about an axis of the patient."""
    a, b = [k for k in range(3) if k != axis]
    turn = np.eye(3)
    turn[a, a] = turn[b, b] = np.cos(np.deg2rad(degrees))
    turn[b, a] = np.sin(np.deg2rad(degrees))
    turn[a, b] = -turn[b, a]
    return turn


ARRANGEMENTS = [(order, flips) for order in permutations(range(3)) for flips in product((False, True), repeat=3)]


@pytest.mark.parametrize(("order", "flips"), ARRANGEMENTS)
def test_a_marker_is_where_a_radiologist_expects_it(order, flips):
    volume, affine = grid()
    volume[15, 4, 33] = 1000  # high up, far in front, far to the patient's left
    lps = (affine @ [15, 4, 33, 1])[:3]
    volume, affine = rearranged(volume, affine, order, flips)
    expected = {
        # name: (rows, columns), row and column of the marker, letters left, right, top, bottom
        "axial": ((30, 40), (4, 33), ("R", "L", "A", "P")),
        "coronal": ((20, 40), (4, 33), ("R", "L", "S", "I")),
        "sagittal": ((20, 30), (4, 4), ("A", "P", "S", "I")),
    }
    for name, (shape, marker, letters) in expected.items():
        seen = view(volume, affine, name)
        picture = seen.slab(lps, 6)
        assert picture.shape == shape
        assert np.unravel_index(picture.argmax(), shape) == marker
        assert seen.letters == letters


@pytest.mark.parametrize(("order", "flips"), ARRANGEMENTS[::5])
@pytest.mark.parametrize("name", ["axial", "coronal", "sagittal"])
def test_a_point_in_patient_space_falls_on_its_voxel(order, flips, name):
    volume, affine = grid()
    volume[11, 22, 5] = 1000
    lps = affine @ [11, 22, 5, 1]
    volume, affine = rearranged(volume, affine, order, flips)
    seen = view(volume, affine, name)
    place = seen.place(lps[:3])
    np.testing.assert_allclose(place, np.argwhere(seen.voxels == 1000)[0], atol=1e-9)


def test_slices_slabs_and_the_size_are_those_of_the_view():
    """Rows lie 1.5 mm apart: 6 mm are two on either side of the one that the point is in."""
    volume, affine = grid()
    volume[:, 15, :] = 7
    volume[:, 17, 3] = 9
    volume[:, 18, 4] = 11
    volume[:, 12, 5] = -5
    lps = (affine @ [3.2, 15.3, 8, 1])[:3]
    seen = view(volume, affine, "coronal")
    assert (seen.slice_through(lps) == 7).all()
    assert seen.slab(lps, 6).max() == 9
    assert seen.slab(lps, 9).max() == 11
    assert seen.slab(lps, 6, minimum=True).min() == 0
    assert seen.slab(lps, 9, minimum=True).min() == -5
    assert (seen.slice_through(np.add(lps, (0, 1e4, 0))) == volume[:, -1, :][::-1]).all()
    assert seen.distance_mm(lps, np.add(lps, (5, 2.5, -7))) == pytest.approx(2.5)
    assert seen.size_mm == (40.0, 40.0)
    assert view(volume, affine, "axial").size_mm == (45.0, 40.0)
    assert view(volume, affine, "sagittal").spacing_mm == (1.0, 2.0, 1.5)


def test_two_axes_do_not_claim_the_same_side_of_an_oblique_volume():
    """Turned by 50 degrees about the line of sight, and tilted out of the plane as well."""
    volume, affine = grid()
    affine[:3, :3] = rotation(50, axis=2) @ rotation(20, axis=0) @ affine[:3, :3]
    seen = view(volume, affine, "axial")
    assert sorted(seen.letters) == ["A", "L", "P", "R"]
    point = seen.affine_lps @ [3, 4, 5, 1]
    np.testing.assert_allclose(seen.place(point[:3]), [3, 4, 5], atol=1e-9)


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ((1, 0, 0), "L"),
        ((-2, 0, 0), "R"),
        ((0, 3, 0.5), "P"),
        ((0, -1, 0), "A"),
        ((0.3, 0, 1), "S"),
        ((0, 0, -1), "I"),
    ],
)
def test_letters(direction, expected):
    assert letter(direction) == expected
