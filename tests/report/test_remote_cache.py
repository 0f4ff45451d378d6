"""What an evaluation takes from a cache in an object store: a few words about each series, and no volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aneurysm.cache.cache import open_cache
from aneurysm.report.run import read_run
from aneurysm.report.source import NOT_KNOWN, acquisitions, lesions
from tests.support.built import Built
from tests.support.cache_paths import volume_name
from tests.support.fake_runs import of_cache, write_run
from tests.support.s3 import Bucket, copied_bytes

pytestmark = pytest.mark.usefixtures("s3_settings")


def test_planes_and_lesions_without_bringing_a_volume(built: Built, bucket: Bucket, tmp_path: Path) -> None:
    url, local = bucket.upload(built.cache, "cache"), open_cache(built.cache)
    cache = open_cache(url, local_cache=tmp_path / "copies")
    predictions = read_run(write_run(tmp_path / "run", of_cache(local), n_folds=1)).predictions
    ours, theirs = acquisitions(cache, predictions), acquisitions(local, predictions)
    assert ours.planes.tolist() == theirs.planes.tolist()
    assert ours.thickness.tolist() == theirs.thickness.tolist()
    assert set(ours.planes.tolist()) != {NOT_KNOWN}
    found = lesions(cache, predictions, None).lps_mm
    assert len(found)
    np.testing.assert_array_equal(found, lesions(local, predictions, None).lps_mm)
    assert copied_bytes(tmp_path / "copies") == 0
    bucket.delete(f"cache/{volume_name(predictions.uids[0])}/zarr.json")
    assert acquisitions(cache, predictions).planes[0] == NOT_KNOWN
