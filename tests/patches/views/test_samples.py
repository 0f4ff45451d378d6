"""Samples of a view: the same whoever reads them, from the cache and from DICOM, in training and in prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aneurysm.cache.cache import open_cache
from aneurysm.errors import SamplingError, UsageError
from aneurysm.inference.read_series import read_path
from aneurysm.inference.series_paths import find_paths
from aneurysm.labels import UNKNOWN
from aneurysm.patches.loader import PatchLoader
from aneurysm.patches.plan import Sampling
from aneurysm.patches.views.config import MipConfig, SlicesConfig
from aneurysm.patches.views.pictures import read_pictures
from aneurysm.spec import load_spec
from aneurysm.windows.series_pictures import read_series_pictures
from tests.support.built import Built

VIEWS = {
    "even slices": SlicesConfig(size_mm=64),
    "vascular triplets": SlicesConfig(count=5, pick="vascular", neighbours=1, stack="bag", size_mm=64),
    "random slices": SlicesConfig(count=4, pick="random", stack="bag", size_mm=64),
    "projections": MipConfig(size_mm=64, how=("max", "min")),
}


def loader(cache, config, **options) -> PatchLoader:
    view = config.build(cache.spec.spacing_mm)
    return PatchLoader(cache, view=view, **{"batch_size": 2, "steps": 4, "seed": 5, **options})


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_samples_in_every_epoch(small_cache, workers):
    config = VIEWS["random slices"]
    own, theirs = loader(small_cache, config), loader(small_cache, config, workers=workers)
    try:
        for _ in range(2):
            ours = list(own)
            assert len(ours) == 4
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a.image, b.image)
                assert torch.equal(a.targets, b.targets)
                assert a.planes == b.planes == (((0, 0),) * 4,)
    finally:
        theirs.close()


def test_a_run_that_resumes_reads_on(small_cache):
    whole = list(loader(small_cache, VIEWS["random slices"]))
    first = loader(small_cache, VIEWS["random slices"])
    batches = iter(first)
    next(batches)
    again = loader(small_cache, VIEWS["random slices"], workers=1)
    again.load_state_dict(first.state_dict())
    try:
        for ours, theirs in zip(whole[1:], again, strict=True):
            assert torch.equal(ours.image, theirs.image)
    finally:
        again.close()


def test_a_sample_has_the_labels_of_its_series(small_cache):
    rows = [
        (labels, target, ignore)
        for batch in loader(small_cache, VIEWS["even slices"])
        for labels, target, ignore in zip(small_cache.labels[batch.volume], batch.targets, batch.ignore, strict=True)
    ]
    assert len(rows) == 8
    for labels, target, ignore in rows:
        assert np.array_equal(target.numpy() == 1, labels == 1)
        assert np.array_equal(ignore.numpy(), labels == UNKNOWN)
    assert {why for batch in loader(small_cache, VIEWS["even slices"]) for why in batch.why} == {"series"}


def test_samplers_of_places_have_no_say(small_cache):
    """Nor is it refused that lesions alone are drawn about, where there are none."""
    one = next(iter(loader(small_cache, VIEWS["even slices"], sampling=Sampling(lesion=1, vessel=0, foreground=0))))
    other = next(iter(loader(small_cache, VIEWS["even slices"])))
    assert torch.equal(one.image, other.image)


def test_a_loader_needs_a_patch_or_a_view_and_pictures_have_no_masks(small_cache):
    view = VIEWS["even slices"].build(small_cache.spec.spacing_mm)
    for options in ({}, {"patch": (16, 16, 16), "view": view}):
        with pytest.raises(SamplingError, match=r"either patch=\(z, y, x\) voxels, or view="):
            PatchLoader(small_cache, batch_size=1, steps=1, **options)
    with pytest.raises(SamplingError, match="without a vessel mask"):
        PatchLoader(small_cache, batch_size=1, steps=1, view=view, vessels=True)


def test_a_view_may_be_given_as_in_a_configuration(small_cache):
    given = PatchLoader(small_cache, view={"name": "slices", "size_mm": 64}, batch_size=2, steps=4, seed=5)
    for ours, theirs in zip(given, loader(small_cache, VIEWS["even slices"]), strict=True):
        assert torch.equal(ours.image, theirs.image)
    for wrong, words in (({"name": "slices", "cuont": 3}, "cuont"), ({"name": "slice"}, "view"), ({}, "view"),
                         ({"name": "patch3d"}, r"patch=\(z, y, x\)")):  # fmt: skip
        with pytest.raises(UsageError, match=words) as error:
            PatchLoader(small_cache, view=wrong, batch_size=1, steps=1)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", VIEWS.values(), ids=VIEWS)
def test_from_dicom_a_sample_is_what_it_is_from_the_cache(built: Built, config):
    cache, spec = open_cache(built.cache), load_spec("rsna-1mm")
    view = config.build(spec.spacing_mm)
    seen = set()
    for uid in built.uids[:3]:
        (path,) = find_paths(built.data / "series" / uid)
        (stored,) = find_paths(cache.volume(uid).path)
        expected = np.empty((view.channels, *view.shape), np.int16)
        read_pictures(cache.volume(uid), view.choose(cache.volume(uid)), expected)
        for source in (read_path(path, spec).volume, read_path(stored, spec).volume, cache.volume(uid)):
            assert np.array_equal(read_series_pictures(source, view).voxels, expected)
        seen.add(expected.tobytes())
    assert len(seen) == 3
