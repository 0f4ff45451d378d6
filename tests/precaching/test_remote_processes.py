"""A cache in a store, built by real processes: a Dask cluster's, and one that is told to stop."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.built import Built
from tests.support.cache_state import leftovers, same_cache
from tests.support.cluster import Cluster
from tests.support.command import call_cli, start_cli
from tests.support.running import assert_group_ends, wait_until
from tests.support.s3 import Bucket

pytestmark = pytest.mark.usefixtures("s3_settings")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_dask_cluster_builds_the_cache_of_one_machine(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    """Data and cache are both in the store: the workers see no folder of the run."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    url = bucket.upload(built.data, "data")
    cluster = Cluster(folder)
    try:
        cluster.add_worker("--nthreads", 2)
        ran = call_cli("precache", "--data", url, "--cache", f"{bucket.url}/cache", "--scheduler-file", cluster.file)
        assert ran.code == 0, ran.text + cluster.logs()
    finally:
        cluster.end()
    copy = bucket.download("cache", tmp_path / "copy")
    assert same_cache(copy, built.cache) == []
    assert leftovers(copy) == []


@pytest.mark.timeout(300)
def test_a_run_ends_soon_when_it_is_told_to(long_run: Built, bucket: Bucket) -> None:
    url = f"{bucket.url}/cache"
    process = start_cli("precache", "--data", long_run.data, "--cache", url, "--workers", 1)

    def sent() -> int:
        return sum(key.endswith(".zarr/zarr.json") for key in bucket.keys("cache/volumes/"))

    assert wait_until(sent, process)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 143, out + err
    assert "Traceback" not in out + err
    assert_group_ends(process)
    assert sent() < len(long_run.uids), "the run had ended before the signal came"
    again = call_cli("precache", "--data", long_run.data, "--cache", url, "--workers", 1)
    assert again.code == 0, again.text
    assert sent() == len(long_run.uids)
    assert bucket.keys("cache/.building/") == []
