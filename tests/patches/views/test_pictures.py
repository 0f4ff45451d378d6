"""Pictures are what numpy makes of the whole volume, voxel for voxel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from aneurysm.patches.views.config import MipConfig, SlicesConfig
from aneurysm.patches.views.pictures import read_pictures, voxel_of
from aneurysm.patches.views.view import PLANES, Picture
from aneurysm.volume.intensity import to_model_units
from tests.support.heads_in_memory import AIR, head
from tests.support.painted import Painted

MM = (1.0, 1.0, 1.0)
SHAPES = st.tuples(*[st.integers(1, 40)] * 3)


def by_numpy(volume, picture: Picture, rows: int, columns: int) -> np.ndarray:
    """The picture, with no thought of how much is read."""
    axis, reach = picture.axis, 60
    voxels = np.asarray(volume.voxels)
    first, last = max(picture.first, 0), max(min(picture.last, voxels.shape[axis]), 0)
    part = np.moveaxis(voxels, axis, 0)[first:last]
    if len(part) == 0:
        return np.full((rows, columns), AIR)
    if len(part) == 1 and picture.how != "std":
        flat = part[0].astype(float)
    elif picture.how == "max":
        flat = part.max(0)
    elif picture.how == "mean":
        flat = np.rint(part.mean(0, dtype=np.float32))
    elif picture.how == "std":
        flat = np.rint(part.std(0, dtype=np.float32) - 100)  # the window begins at -100 HU
    else:
        inner = ndimage.binary_erosion(volume.survey.head)
        for a in range(3):
            inner = np.repeat(inner, 8, a)
        inner = np.moveaxis(inner[tuple(slice(n) for n in voxels.shape)], axis, 0)[first:last]
        flat = np.where(inner.any(0), np.where(inner, part, 32767).min(0), AIR)
    padded = np.pad(flat, reach, constant_values=AIR)
    row, column = (c + reach for c in picture.corner)
    return padded[row : row + rows, column : column + columns]


@st.composite
def cases(draw):
    shape = draw(SHAPES)
    rows, columns = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    pictures = []
    for _ in range(draw(st.integers(1, 5))):
        axis, first = draw(st.integers(0, 2)), draw(st.integers(-5, 45))
        last = first + draw(st.sampled_from([1, 1, 2, 7, 60]))
        corner = (draw(st.integers(-8, 20)), draw(st.integers(-8, 20)))
        pictures.append(Picture(axis, first, last, corner, draw(st.sampled_from(["max", "min", "mean", "std"]))))
    return shape, rows, columns, pictures


@settings(deadline=None, max_examples=150)
@given(cases())
def test_any_pictures_are_those_that_numpy_makes(case):
    shape, rows, columns, pictures = case
    volume = head(shape)
    out = np.empty((1, len(pictures), rows, columns), np.int16)
    read_pictures(volume, [pictures], out)
    for picture, found in zip(pictures, out[0], strict=True):
        if picture.how in ("mean", "std"):  # sums in another order differ in the last bit, and so may what is rounded
            assert np.abs(found - by_numpy(volume, picture, rows, columns)).max() <= 1
        else:
            assert np.array_equal(found, by_numpy(volume, picture, rows, columns))


@pytest.mark.parametrize(
    "config",
    [
        SlicesConfig(count=3, size_mm=48),
        SlicesConfig(count=2, plane="coronal", neighbours=1, stack="bag", size_mm=33),
        MipConfig(size_mm=40), MipConfig(planes=("axial",), slab_mm=10, how=("max", "mean"), size_mm=64),
        MipConfig(stack="channels", how=("min",), size_mm=48),
    ],
    ids=lambda config: f"{config.name} {config.stack}",
)  # fmt: skip
def test_from_chunks_they_are_the_same_as_from_memory(painted, config):
    """The volume ends in the midst of chunks of 32 voxels along each axis."""
    voxels = np.random.default_rng(1).integers(-100, 900, (50, 70, 41), np.int16)
    cache = painted(Painted("1.2", voxels.shape, voxels=voxels))
    view = config.build(MM)
    found, expected = (np.empty((view.channels, *view.shape), np.int16) for _ in range(2))
    memory = head(voxels.shape, voxels=voxels)
    assert view.choose(cache[0]) == view.choose(memory)
    read_pictures(cache[0], view.choose(cache[0]), found)
    read_pictures(memory, view.choose(memory), expected)
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 100


def test_a_window_of_the_maximum_is_the_maximum_of_the_windowed():
    volume = head((30, 30, 30))
    (((picture,),),) = (MipConfig(planes=("axial",), size_mm=30).build(MM).choose(volume),)
    out = np.empty((1, 1, 30, 30), np.int16)
    read_pictures(volume, [[picture]], out)
    windowed = to_model_units(volume.voxels.astype(np.float32), 0.0, 80.0).max(0)
    assert np.array_equal(to_model_units(out[0, 0].astype(np.float32), 0.0, 80.0), windowed)


@pytest.mark.parametrize("how", ["max", "min"])
@pytest.mark.parametrize("plane", PLANES)
def test_a_pixel_of_a_projection_leads_back_to_its_voxel(plane, how):
    place = (17, 26, 30)
    volume = head((40, 48, 56))
    volume.voxels[place] = 2000 if how == "max" else -900
    view = MipConfig(planes=(plane,), how=(how,), size_mm=64).build(MM)
    ((picture,),) = view.choose(volume)
    out = np.empty((1, *view.shape), np.int16)
    read_pictures(volume, [[picture]], out)
    pixels = out[0, 0]
    inside = pixels if how == "max" else np.where(pixels == AIR, 0, -pixels)
    row, column = np.unravel_index(int(inside.argmax()), pixels.shape)
    assert voxel_of(volume, picture, int(row), int(column)) == place


def test_a_pixel_of_a_slice_lies_in_the_slice():
    volume = head((40, 48, 56))
    picture = Picture(1, 12, 13, (-4, 5))
    assert voxel_of(volume, picture, 10.5, 3.0) == (6.5, 12.0, 8.0)


def test_a_deviation_of_zero_is_black_and_one_as_wide_as_the_window_is_white():
    voxels = np.zeros((10, 2, 1), np.int16)
    voxels[:, 1, 0] = np.where(np.arange(10) % 2, 1000, -1000)
    volume = head(voxels.shape, voxels=voxels)
    out = np.empty((1, 1, 2, 1), np.int16)
    read_pictures(volume, [[Picture(0, 0, 10, (0, 0), "std")]], out)
    assert out.ravel().tolist() == [-100, 900]
