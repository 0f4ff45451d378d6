"""The soak, short: what five minutes of it find is not for a test, but that it looks, and that it would say so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.tables import write_tables
from aneurysm.precaching.run import precache
from aneurysm.precaching.verify import verify
from benchmarks.soak import Soak, differences
from benchmarks.tiny import clone_volume, series_uid, write_tiny_data
from tests.support.cache_paths import volume_path

COUNT = 4


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    write_tiny_data(root / "data", COUNT)
    assert precache(root / "data", root / "cache", workers=0).cached == COUNT
    return root / "cache"


@pytest.fixture
def cache(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "cache"))


UIDS = {series_uid(i) for i in range(COUNT)}


def test_a_finished_cache_has_no_differences(cache, reference):
    assert differences(cache, reference, UIDS) == []


@pytest.mark.parametrize(
    "harm, told",
    [
        (lambda c: shutil.rmtree(volume_path(c, series_uid(1))), "3 volumes"),
        (lambda c: (volume_path(c, series_uid(2)) / "0" / "zarr.json").write_text("{}"), "verify"),
        (lambda c: (c / ".building").mkdir(), "left over: .building"),
        (lambda c: (c / ".runs" / "x" / "deal-1").mkdir(parents=True), "left over: .runs/x/deal-1"),
        (lambda c: (c / "volumes" / ".x.tmp").touch(), "left over: volumes/.x.tmp"),
        (lambda c: (c / "manifest.csv").write_text((c / "manifest.csv").read_text().replace("sha256:", "sha256:0")),
         "4 rows are not the reference's"),
    ],
)  # fmt: skip
def test_harm_is_told(cache, reference, harm, told):
    harm(cache)
    assert any(told in line for line in differences(cache, reference, UIDS))


def test_cloned_volumes_are_sound(cache):
    """What benchmarks/scale.py verifies by the thousand must be what precache would have written."""
    clone_volume(cache, range(COUNT, 3 * COUNT))
    write_tables(CacheLayout(cache))
    report = verify(cache, workers=0)
    assert (report.faults, report.volumes) == ([], 3 * COUNT)
    metadata = json.loads((CacheLayout(cache).volume(series_uid(9)) / "zarr.json").read_text())
    assert metadata["attributes"]["aneurysm"]["series_uid"] == series_uid(9)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parts, steal", [("", False), ("plan", True), ("array", True)])
def test_runs_that_are_killed_at_random_leave_nothing_behind(tmp_path, parts, steal):
    write_tiny_data(tmp_path / "data", 60)
    soak = Soak(tmp_path, tmp_path / "data", series=60, seed=7, parts=parts, steal=steal)
    soak.go_on_for(20, every_s=1.0)
    assert soak.faults == []
    assert soak.counts["workers killed"] + soak.counts["whole runs killed"] > 3
