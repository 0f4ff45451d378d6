"""Patches that hold a whole volume take the labels of its series; those that hold a part know nothing of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aneurysm import CacheWriter
from aneurysm.cache.cache import Cache, open_cache
from aneurysm.labels import LABELS, SITES
from aneurysm.patches.augment import augment
from aneurysm.patches.augment_config import AugmentConfig, Flip
from aneurysm.patches.batch import Batch
from aneurysm.patches.loader import PatchLoader
from aneurysm.patches.plan import Sampling
from aneurysm.patches.samplers import PatchLocation
from tests.support.noise_cache import add_volume, finish_cache

PRESENT, SITE = 13, 4
ALL = set(range(14))


def one_batch(cache: Cache, edge: int) -> Batch:
    """A patch of every series."""
    sampling = Sampling(lesion=0, vessel=0, foreground=0, uniform=1)
    (batch,) = PatchLoader(
        cache, volumes=range(len(cache)), patch=(edge, edge, edge), batch_size=len(cache), steps=1, sampling=sampling
    )
    return batch


def told(batch, uid: str) -> tuple[set[int], set[int]]:
    """The labels that a series' patch has, and those that are ignored."""
    i = batch.series_uid.index(uid)
    return tuple(set(torch.nonzero(row[i]).ravel().tolist()) for row in (batch.targets, batch.ignore))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> Cache:
    root, voxels = tmp_path_factory.mktemp("whole"), np.arange(20**3, dtype=np.uint8).reshape(20, 20, 20)
    present, site = LABELS[PRESENT], SITES[SITE]
    everything = dict.fromkeys(LABELS, 0)
    with CacheWriter(root) as writer:
        writer.add("positive", voxels, labels={present: 1})
        writer.add("negative", voxels, labels={present: 0})
        writer.add("unlabelled", voxels)
        writer.add("site", voxels, labels={site: 1})
        writer.add("site-alone", voxels, labels=everything | {site: 1, present: 1})
        writer.add("elsewhere", voxels, labels=everything | {present: 1})
        writer.add("placed", voxels, labels=everything | {site: 1, present: 1}, lesions=[(site, (10, 10, 10))])
        writer.add("nothing", voxels, labels=everything)
    return open_cache(root)


@pytest.mark.parametrize("edge", [20, 32])
def test_all_of_the_volume_has_what_the_series_has(arrays, edge):
    batch = one_batch(arrays, edge)
    assert told(batch, "positive") == ({PRESENT}, ALL - {PRESENT})
    assert told(batch, "negative") == (set(), ALL - {PRESENT})
    assert told(batch, "unlabelled") == (set(), ALL)
    assert told(batch, "site") == ({SITE, PRESENT}, ALL - {SITE, PRESENT})
    assert told(batch, "site-alone") == ({SITE, PRESENT}, set())
    assert told(batch, "elsewhere") == ({PRESENT}, set())
    assert told(batch, "placed") == ({SITE, PRESENT}, set())
    assert told(batch, "nothing") == (set(), set())


def test_a_part_of_the_volume_may_or_may_not_have_it(arrays):
    batch = one_batch(arrays, 19)
    assert not batch.certain.any()
    assert told(batch, "positive") == (set(), ALL)
    assert told(batch, "negative") == (set(), ALL - {PRESENT})
    assert told(batch, "unlabelled") == (set(), ALL)
    assert told(batch, "site") == (set(), ALL)
    assert told(batch, "site-alone") == (set(), {SITE, PRESENT})
    assert told(batch, "elsewhere") == (set(), {PRESENT})
    assert told(batch, "placed") == ({SITE, PRESENT}, set())
    assert told(batch, "nothing") == (set(), set())


def test_a_lesion_that_is_known_to_lie_outside_the_volume_is_in_no_patch_of_it(tmp_path):
    add_volume(tmp_path, "1.1", shape=(20, 20, 20), unplaced=[(SITE, "outside_volume")])
    add_volume(tmp_path, "1.2", shape=(20, 20, 20), unplaced=[(SITE, "image_not_in_series")])
    batch = one_batch(finish_cache(tmp_path), 24)
    assert told(batch, "1.1") == (set(), set())
    assert told(batch, "1.2") == ({SITE, PRESENT}, set())


def test_a_mirror_image_has_it_on_the_other_side(arrays):
    config = AugmentConfig.off().model_copy(update={"flip": Flip(left_right=1.0)})
    given = augment(one_batch(arrays, 20), config)
    assert told(given, "site-alone") == ({5, PRESENT}, set())
    assert told(given, "positive") == ({PRESENT}, ALL - {PRESENT})


def test_turning_and_shrinking_leave_it_in_the_patch(arrays):
    given = augment(one_batch(arrays, 20), AugmentConfig())
    assert told(given, "positive") == ({PRESENT}, ALL - {PRESENT})
    assert told(given, "negative") == (set(), ALL - {PRESENT})


@pytest.mark.parametrize(
    "start, shape, holds",
    [
        ((0, 0, 0), (5, 6, 7), True),
        ((-2, 0, -1), (7, 6, 8), True),
        ((0, 0, 1), (5, 6, 7), False),
        ((0, 0, 0), (5, 6, 6), False),
        ((-1, 0, 0), (5, 6, 7), False),
    ],
)
def test_holds(start, shape, holds):
    assert PatchLocation(0, start, shape, "uniform").holds((5, 6, 7)) is holds
