"""Pictures move as the head does: a flip of the volume before it is projected is the flip of its pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.labels import LABELS
from aneurysm.patches.augment import augment
from aneurysm.patches.augment_config import AugmentConfig
from aneurysm.patches.augment_draws import draw_augmentation, rotation_zyx
from aneurysm.patches.loader import PatchLoader
from aneurysm.patches.picture_geometry import PictureGeometry, mirrored_pictures
from aneurysm.patches.views.config import MipConfig, SlicesConfig
from aneurysm.patches.views.pictures import read_pictures
from tests.support.heads_in_memory import AIR, head

MM = (1.0, 1.0, 1.0)
STILL = draw_augmentation(0, AugmentConfig.off(), (4, 4, 4))
VIEWS = {
    "planes as a bag": MipConfig(size_mm=32),
    "planes as channels": MipConfig(size_mm=32, stack="channels", how=("max", "mean")),
    "sagittal slices": SlicesConfig(plane="sagittal", count=3, size_mm=32, stack="bag", neighbours=1),
    "axial slices as channels": SlicesConfig(count=3, size_mm=32),
    "slabs": MipConfig(size_mm=32, slab_mm=8),
}


def sample(config, voxels):
    view = config.build(MM)
    out = np.empty((view.channels, *view.shape), np.int16)
    volume = head(voxels.shape, voxels=np.ascontiguousarray(voxels))
    read_pictures(volume, view.choose(volume), out)
    return view, torch.from_numpy(out)[None]


@pytest.mark.parametrize("config", VIEWS.values(), ids=VIEWS)
@settings(deadline=None, max_examples=8)
@given(st.tuples(st.booleans(), st.booleans(), st.booleans()), st.booleans())
def test_flipped_pictures_are_those_of_the_flipped_volume(config, flips, resampled):
    voxels = np.random.default_rng(2).integers(-100, 900, (32, 32, 32), np.int16)
    view, pictures = sample(config, voxels)
    axes = [axis for axis, flip in enumerate(flips) if flip]
    draw = replace(STILL, flips=flips, affine_mm=np.eye(3) if resampled else None)
    found = PictureGeometry([draw], view.planes, MM).image(pictures, torch.tensor([float(AIR)]))
    flipped = np.flip(voxels, axes)
    if isinstance(config, SlicesConfig):  # slices 8, 16 and 24 of 32 are mirrored to 23, 15 and 7
        flipped = np.roll(flipped, [1 if axis == view.axis else 0 for axis in axes], axes)
    _, expected = sample(config, flipped)
    torch.testing.assert_close(found, expected.float(), atol=0.01, rtol=0)


def test_a_turn_and_a_shift_move_what_a_picture_shows_by_so_many_mm():
    """A spot 10 mm in front of the middle: turned by 90 degrees about z it lies on one side, shifted it lies beside."""
    voxels = np.zeros((33, 33, 33), np.int16)
    voxels[16, 6, 16] = 800
    view, pictures = sample(MipConfig(planes=("axial",), size_mm=33), voxels)
    turned = replace(STILL, affine_mm=rotation_zyx(np.pi / 2, 0, 0))
    moved = replace(STILL, affine_mm=np.eye(3), shift_mm=(5.0, 3.0, -4.0))
    mirrored = replace(moved, flips=(False, False, True))
    found = PictureGeometry([turned, moved, mirrored], view.planes, MM).image(
        pictures.repeat(3, 1, 1, 1, 1), torch.full((3,), float(AIR))
    )
    places = [np.unravel_index(int(f[0, 0].argmax()), (33, 33)) for f in found]
    y, x = (rotation_zyx(np.pi / 2, 0, 0) @ [0, -10, 0])[1:]
    assert places == [(round(16 + y), round(16 + x)), (9, 12), (9, 20)]


def test_what_comes_in_from_outside_is_air():
    view, pictures = sample(MipConfig(planes=("coronal",), size_mm=24), np.full((24, 24, 24), 500, np.int16))
    moved = replace(STILL, affine_mm=np.eye(3), shift_mm=(6.0, 0.0, 0.0))
    found = PictureGeometry([moved], view.planes, MM).image(pictures, torch.tensor([float(AIR)]))[0, 0, 0]
    torch.testing.assert_close(found[:6], torch.full((6, 24), float(AIR)), atol=0.01, rtol=0)
    torch.testing.assert_close(found[6:], torch.full((18, 24), 500.0), atol=0.01, rtol=0)


@pytest.mark.parametrize("config", VIEWS.values(), ids=VIEWS)
def test_the_mirror_image_of_several_windows_is_that_of_each(config):
    view, pictures = sample(config, np.random.default_rng(3).integers(-100, 900, (32, 32, 32), np.int16))
    draw = replace(STILL, flips=(False, False, True))
    one = PictureGeometry([draw], view.planes, MM).image(pictures, torch.zeros(1))
    both = torch.stack([pictures.float(), pictures * 2.0], 2).flatten(1, 2)
    assert torch.equal(mirrored_pictures(both, view.planes), torch.stack([one, one * 2], 2).flatten(1, 2))


def test_labels_trade_sides_with_the_pictures_or_are_kept(small_cache):
    view = MipConfig(planes=("coronal",), size_mm=32).build(MM)
    loader = PatchLoader(small_cache, view=view, batch_size=4, steps=1)
    (batch,) = loader
    swaps = AugmentConfig.off().model_copy(update={"flip": AugmentConfig().flip.model_copy(update={"left_right": 1.0})})
    keeps = swaps.model_copy(update={"flip": swaps.flip.model_copy(update={"labels": "keep"})})
    plain, swapped, kept = (augment(batch, c) for c in (AugmentConfig.off(), swaps, keeps))
    other = [LABELS.index(a.replace("Left", "?").replace("Right", "Left").replace("?", "Right")) for a in LABELS]
    assert torch.equal(swapped.image, plain.image.flip(-1))
    assert torch.equal(swapped.targets, plain.targets[:, other])
    assert torch.equal(swapped.ignore, plain.ignore[:, other])
    assert torch.equal(kept.image, swapped.image)
    assert torch.equal(kept.targets, plain.targets)
    assert plain.targets.any()
