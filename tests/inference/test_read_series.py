"""What `predict` sees of a DICOM series is, voxel for voxel, what `precache` stores of it."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from aneurysm.annotations.source_pixel import source_pixel
from aneurysm.cache.cache import open_cache
from aneurysm.errors import DataError, SeriesRejectedError, SpecMismatchError, UsageError
from aneurysm.inference.read_series import read_path
from aneurysm.inference.series_paths import find_paths
from aneurysm.phantom.dataset import write_plans
from aneurysm.phantom.plan import plan_series
from aneurysm.phantom.truth import read_truth
from aneurysm.precaching.run import precache
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.spec import load_spec
from aneurysm.volume.intensity import Intensity
from tests.support.acquisition import acquire
from tests.support.pattern import anatomy
from tests.support.series import write_series

SITES = ("Left Posterior Communicating Artery", "Right Supraclinoid Internal Carotid Artery")
SERIES = [
    ("CTA", ("tilt", "descending", "non_square", "padding")),
    ("CTA", ("test_tags", "already_hu")),
    ("MRA", ("coronal", "oblique", "scrambled_numbers", "slice_rescale", "test_tags")),
    ("MRI T2", ("sagittal", "shuffled_frames", "monochrome1")),
    ("MRA", ("stripped_multiframe",)),
]
SPEC = "rsna-1mm"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    plans = [plan_series(3, i, modality=m, sites=SITES, quirks=quirks) for i, (m, quirks) in enumerate(SERIES)]
    write_plans(root / "data", plans)
    precache(root / "data", root / "cache", spec=SPEC, workers=0)
    return root


def test_voxels_units_and_place_are_those_of_the_cache(phantom):
    cache, spec = open_cache(phantom / "cache"), load_spec(SPEC)
    paths = find_paths(phantom / "data")
    assert sorted(p.uid for p in paths) == sorted(cache.uids)
    assert len(cache) == len(SERIES)
    for path in paths:
        cached, read = cache.volume(path.uid), read_path(path, spec).volume
        assert read.voxels.dtype == cached.dtype
        assert np.array_equal(read.voxels, cached.read((0, 0, 0), cached.shape))
        assert np.array_equal(read.affine_lps, cached.affine_lps)
        assert Intensity(*[getattr(read.intensity, f.name) for f in fields(Intensity)]) == cached.intensity
        assert read.fill == cached.fill
        if not cached.has_vessels:
            assert np.array_equal(read.blocks.head, cached.blocks.head)


def test_boxes_in_memory_are_those_of_the_cache(phantom):
    cache, spec = open_cache(phantom / "cache"), load_spec(SPEC)
    path = find_paths(phantom / "data")[0]
    cached, read = cache.volume(path.uid), read_path(path, spec).volume
    assert read.shape == cached.shape
    rng = np.random.default_rng(0)
    for _ in range(20):
        start, shape = tuple(rng.integers(-40, 120, 3).tolist()), tuple(rng.integers(1, 60, 3).tolist())
        assert np.array_equal(read.read(start, shape), cached.read(start, shape))


def test_a_cached_volume_reads_as_it_is(phantom):
    cache, spec = open_cache(phantom / "cache"), load_spec(SPEC)
    (path,) = find_paths(cache[0].path)
    read = read_path(path, spec)
    assert read.volume.uid == cache.uids[0]
    assert np.array_equal(read.volume.voxels, cache[0].read((0, 0, 0), cache[0].shape))
    assert read.stack is None
    assert [p.uid for p in find_paths(phantom / "cache")] == cache.uids


def test_a_cached_volume_of_another_spec_is_refused(phantom):
    (path,) = find_paths(open_cache(phantom / "cache")[0].path)
    with pytest.raises(SpecMismatchError, match="wants"):
        read_path(path, load_spec("rsna-1mm-u8"))


def test_the_pixel_of_a_marked_point_is_the_one_that_was_marked(phantom):
    spec, marked = load_spec(SPEC), 0
    paths = {p.uid: p for p in find_paths(phantom / "data")}
    for truth in read_truth(phantom / "data"):
        stack = read_path(paths[truth.uid], spec).stack
        for lesion in truth.lesions:
            if lesion.mark == "exact":
                pixel = source_pixel(stack, lesion.point_lps)
                assert (pixel.sop_uid, pixel.frame) == (lesion.sop_uid, lesion.frame)
                assert (pixel.column, pixel.row) == pytest.approx((lesion.x, lesion.y), abs=0.01)
                marked += 1
    assert marked >= 2 * len(SERIES) - 2


def test_a_point_beside_the_image_gets_its_nearest_pixel(phantom):
    (path,) = [p for p in find_paths(phantom / "data") if p.uid == _uid(phantom, 1)]
    stack = read_path(path, load_spec(SPEC)).stack
    pixel = source_pixel(stack, (1000.0, 1000.0, 0.0))
    frame = stack.frames[0].format
    assert (pixel.column, pixel.row) == (frame.columns - 1, frame.rows - 1)


def test_a_point_of_a_second_part_gets_the_pixel_of_its_own_slice(tmp_path):
    """A block with the gantry tilted: each pixel goes to a voxel, and from there back to itself."""
    upper = acquire(slices=16, gap_mm=3.0, shape=(40, 40), spacing_mm=(1.5, 1.5), middle=(0, 0, 40))
    lower = acquire(slices=12, gap_mm=2.0, shape=(40, 40), spacing_mm=(1.5, 1.5), tilt_deg=15.0, middle=(0, 0, 2.5))
    written = [
        write_series(tmp_path / "s", block, anatomy(block.centre, 60.0), uid="1.2.3", label=str(i), first_number=99 * i)
        for i, block in enumerate((upper, lower))
    ]
    stack = read_path(SeriesSource("1.2.3", tmp_path / "s"), load_spec(SPEC)).stack
    assert [len(part.frames) for part in stack.parts] == [16, 12]
    for block, files in zip((upper, lower), written, strict=True):
        for k in range(2, len(block) - 2):
            pixel = source_pixel(stack, tuple(block.lps(k, 23.0, 17.0)))
            assert pixel.sop_uid == files.sops[k]
            assert (pixel.column, pixel.row) == pytest.approx((23.0, 17.0), abs=0.01)


def _uid(phantom, index):
    return next(t.uid for t in read_truth(phantom / "data") if t.index == index)


def test_folders_of_one_series_and_files_are_found(phantom):
    uid = _uid(phantom, 1)
    folder = phantom / "data" / "series" / uid
    assert [p.uid for p in find_paths(folder)] == [uid]  # of a test-set file, which does not name its series
    (file,) = (phantom / "data" / "series" / _uid(phantom, 4)).iterdir()
    (path,) = find_paths(file)
    assert path.list_files() == [file]


def test_what_holds_no_series_is_told_apart(tmp_path):
    with pytest.raises(UsageError, match="there is no"):
        find_paths(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no DICOM series"):
        find_paths(tmp_path)
    (tmp_path / "note.txt").write_text("not DICOM")
    with pytest.raises(UsageError, match="no DICOM"):
        find_paths(tmp_path / "note.txt")


def test_an_empty_folder_of_a_series_is_rejected(tmp_path):
    (tmp_path / "series" / "1.2.3").mkdir(parents=True)
    (path,) = find_paths(tmp_path)
    with pytest.raises(SeriesRejectedError, match="no_files"):
        read_path(path, load_spec(SPEC))
