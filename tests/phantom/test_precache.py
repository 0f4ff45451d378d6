"""
A phantom data set with every quirk through `precache`.

What is compared: status and reason of every series, the place of every marked aneurysm (against the marked point, and
within 0.75 mm against the sac's centre), its side, the vessel mask's value under it, CT numbers in it, and the recorded
decisions. What is not: the voxels of the anatomy, which the tests of volume/ hold against other implementations.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from aneurysm.phantom.dataset import write_dataset, write_plans
from aneurysm.phantom.plan import COVERED_FROM, plan_series
from aneurysm.phantom.quirks import QUIRKS
from aneurysm.phantom.truth import read_truth
from aneurysm.precaching.run import precache
from tests.phantom.comparison import compare


def test_a_few_series_with_several_quirks_each(tmp_path: Path) -> None:
    sites = ("Left Posterior Communicating Artery", "Right Supraclinoid Internal Carotid Artery")
    wanted = [
        ("CTA", ("tilt", "descending", "non_square", "duplicates", "padding", "jpeg_lossless", "nested_mask")),
        ("MRA", ("coronal", "oblique", "scrambled_numbers", "scouts", "slice_rescale", "big_endian", "regridded_mask")),
        ("MRI T2", ("sagittal", "descending", "shuffled_frames", "unequal_pixels", "monochrome1", "rle")),
        ("MRI T1post", ("oblique", "lying_spacing", "marked_duplicate", "test_tags", "deflated")),
        ("MRA", ("stripped_multiframe", "jpeg2000")),
        ("CTA", ("large_gap", "already_hu", "scouts")),
    ]
    plans = [
        plan_series(7, i, modality=modality, sites=sites, quirks=quirks) for i, (modality, quirks) in enumerate(wanted)
    ]
    write_plans(tmp_path / "data", plans)
    summary = precache(tmp_path / "data", tmp_path / "cache", workers=0)
    assert (summary.cached, summary.rejected, summary.failed) == (5, 1, 0)
    assert compare(tmp_path / "data", tmp_path / "cache") == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_quirk_is_cached_or_refused_as_the_truth_says(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", series=COVERED_FROM + 10, seed=0, size="tiny", workers=2)
    truths = read_truth(tmp_path / "data")
    assert len(truths) >= 150
    assert {q for t in truths for q in t.quirks} == set(QUIRKS)
    summary = precache(tmp_path / "data", tmp_path / "cache", workers=2)
    assert summary.failed == 0
    assert summary.rejected == sum(bool(t.rejected) for t in truths)
    assert compare(tmp_path / "data", tmp_path / "cache") == []
