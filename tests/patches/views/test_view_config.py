"""A view in mm becomes one in voxels."""

from __future__ import annotations

import numpy as np
import pytest

from aneurysm.errors import UsageError
from aneurysm.patches.views.config import MipConfig, SlabConfig, SlicesConfig
from aneurysm.patches.views.view import describe_view
from tests.support.heads_in_memory import head


def test_a_slab_is_a_box_that_is_thin_across_its_plane():
    assert SlabConfig(thickness_mm=10, size_mm=100).build((1, 1, 1)).shape == (10, 100, 100)
    slab = SlabConfig(plane="sagittal", thickness_mm=10, size_mm=100).build((2.0, 0.5, 0.5))
    assert slab.shape == (50, 200, 20)
    assert (slab.scope, slab.channels, slab.planes) == ("patch", 1, None)


def test_slices_have_their_size_in_mm():
    view = SlicesConfig(plane="coronal", size_mm=120).build((3.0, 0.5, 0.5))
    assert view.shape == (1, 40, 240)
    assert view.channels == 3


def test_projections_along_several_axes_are_a_picture_each_or_channels_of_one():
    bag = MipConfig(size_mm=64, slab_mm=30).build((1, 1, 1))
    assert (bag.shape, bag.channels) == ((9, 64, 64), 1)
    assert bag.planes == (((0, 0),) * 3 + ((1, 0),) * 3 + ((2, 0),) * 3,)
    one = MipConfig(size_mm=64, stack="channels", how=("max", "std")).build((1, 1, 1))
    assert (one.shape, one.channels) == ((1, 64, 64), 6)
    assert one.planes == (((0, 0),), ((1, 0),), ((2, 0),), ((0, 1),), ((1, 1),), ((2, 1),))


def test_slabs_are_side_by_side_and_together_the_whole_box():
    (row,) = MipConfig(planes=("axial",), size_mm=64, slab_mm=30).build((1, 1, 1)).choose(head((64, 50, 40)))
    assert [(p.first, p.last) for p in row] == [(0, 30), (30, 60), (60, 64)]
    assert {p.corner for p in row} == {(-7, -12)}


def test_pictures_of_different_sizes_are_refused():
    with pytest.raises(UsageError, match="pictures of different sizes"):
        MipConfig().build((3.0, 1.0, 1.0))
    assert MipConfig(planes=("axial",)).build((3.0, 1.0, 1.0)).shape == (1, 224, 224)


def test_a_volume_without_a_head_is_taken_as_a_whole():
    volume = head((20, 30, 40), head=np.zeros((3, 4, 5), bool))
    ((picture,),) = MipConfig(planes=("axial",), size_mm=40).build((1, 1, 1)).choose(volume)
    assert picture.corner == (-5, 0)


def test_what_a_view_is_is_said_in_words():
    assert describe_view(SlabConfig().build((1, 1, 1))) == "patches of 16 x 192 x 192 voxels"
    assert describe_view(MipConfig(size_mm=64).build((1, 1, 1))) == "series, each 3 pictures of 64 x 64 pixels"
    assert "1 picture of 224 x 224 pixels of 3 channels" in describe_view(SlicesConfig().build((1, 1, 1)))
