"""The judge itself: it lets a right volume pass, and notices a tenth of a millimetre, a flip and a swapped axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.acquisition import PLANES, acquire, rotation
from tests.support.cached import CLOSEST, CachedImage
from tests.support.pattern import Pattern, anatomy
from tests.support.truth import assert_frame, assert_shows, centroid_lps, interior

STACK = acquire(turn=rotation((1, 2, 3), 8))
PATTERN = anatomy(STACK.centre)


def _ideal(pattern: Pattern, *, moved_mm=(0.0, 0.0, 0.0), turn: np.ndarray | None = None) -> CachedImage:
    """What a faultless cache of ``STACK`` would hold, but for a displacement."""
    shape = np.array([26, 32, 30])
    affine = np.eye(4)
    affine[:3, :3] = rotation((1, 2, 3), 8) @ CLOSEST
    affine[:3, 3] = STACK.centre - affine[:3, :3] @ ((shape - 1) / 2)
    intensity = {"unit": "HU", "scale": 1, "offset": 0, "clip": [-1000, 2000]}
    image = CachedImage(
        Path(), np.zeros(shape), {"affine_lps": affine.tolist(), "intensity": intensity, "decisions": []}
    )
    stored = np.rint(pattern(image.centres() - np.array(moved_mm)))
    return CachedImage(image.path, stored, image.meta)


def test_a_right_volume_passes():
    image = _ideal(PATTERN)
    assert_frame(image)
    assert_shows(image, STACK, PATTERN, at_least=5000)


@pytest.mark.parametrize("axis", range(3), ids=["to the left", "to the back", "up"])
def test_a_displacement_of_a_tenth_of_a_millimetre_is_noticed(axis):
    with pytest.raises(AssertionError, match=r"displaced|are off"):
        assert_shows(_ideal(PATTERN, moved_mm=0.12 * np.eye(3)[axis]), STACK, PATTERN)


@pytest.mark.parametrize("axis", range(3), ids=["to the left", "to the back", "up"])
def test_a_displacement_of_a_millimetre_is_noticed_voxel_by_voxel(axis):
    with pytest.raises(AssertionError, match="are off"):
        assert_shows(_ideal(PATTERN, moved_mm=np.eye(3)[axis]), STACK, PATTERN)


@pytest.mark.parametrize("axis", range(3), ids=["up and down", "front and back", "left and right"])
def test_a_flip_is_noticed(axis):
    image = _ideal(PATTERN)
    with pytest.raises(AssertionError, match="are off"):
        assert_shows(CachedImage(image.path, np.flip(image.stored, axis), image.meta), STACK, PATTERN)


def test_a_mirrored_frame_is_noticed():
    image = _ideal(PATTERN)
    mirrored = image.affine
    mirrored[:3, 2] *= -1
    with pytest.raises(AssertionError):
        assert_frame(CachedImage(image.path, image.stored, {**image.meta, "affine_lps": mirrored.tolist()}))


def test_the_pattern_has_no_symmetry():
    """Values change by far more than any tolerance under every flip and swap of axes."""
    points = np.random.default_rng(0).uniform(-12, 12, (500, 3))
    values = PATTERN(points + STACK.centre)
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        for signs in np.array(np.meshgrid(*[(1, -1)] * 3)).reshape(3, -1).T:
            if order == [0, 1, 2] and (signs == 1).all():
                continue
            assert np.abs(PATTERN(points[:, order] * signs + STACK.centre) - values).mean() > 15


@pytest.mark.parametrize("plane", PLANES)
def test_curvature_is_that_of_the_function(plane):
    points = np.random.default_rng(1).uniform(-12, 12, (50, 3)) + STACK.centre
    direction = rotation((1, 0, 1), 20) @ PLANES[plane][0]
    step = direction * 1e-2
    numeric = (PATTERN(points + step) - 2 * PATTERN(points) + PATTERN(points - step)) / 1e-4
    assert np.allclose(PATTERN.second_derivative(points, direction), numeric, atol=1e-3)


def test_a_blobs_centroid_is_its_centre():
    target = STACK.centre + np.array([2.2, -1.3, 0.7])
    blob = Pattern(target, 100.0, (0, 0, 0), (), (PATTERN.blobs[0].__class__(tuple(target), 900.0, 2.5),))
    assert np.allclose(centroid_lps(_ideal(blob), blob.blobs[0], 100.0), target, atol=0.02)


def test_the_interior_of_a_tilted_stack_leans_with_it():
    tilted = acquire(tilt_deg=20, gap_mm=2, slices=12)
    image = _ideal(PATTERN)
    inside = interior(image, tilted)
    assert 0 < inside.sum() < interior(image, acquire(gap_mm=2, slices=12)).sum()
