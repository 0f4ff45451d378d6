"""Planes, slice thickness and lesions of the series, from the cache and a table of radii."""

import csv

import numpy as np
import pytest

from aneurysm.errors import CacheNotFoundError, DataError
from aneurysm.labels import SITES
from aneurysm.report.evaluate import evaluate
from aneurysm.report.evaluation import EvaluateOptions
from aneurysm.report.page import write_report
from aneurysm.report.run import read_run
from aneurysm.report.source import acquisitions, lesions, localisation
from tests.support.fake_runs import of_cache, write_candidates, write_run
from tests.support.noise_cache import add_volume, finish_cache


def test_plane_and_thickness_of_each_series(report_cache, cached_run):
    predictions = read_run(cached_run).predictions
    found = acquisitions(report_cache, predictions)
    assert len(predictions.uids) == 40
    for uid, plane, thickness in zip(predictions.uids, found.planes, found.thickness, strict=True):
        i = int(uid.split(".")[2]) - 1
        assert plane == ("sagittal" if i % 8 == 0 else "axial")
        # SliceThickness, not the slices' distance, which is 9 mm.
        assert thickness == ("0 to 1 mm", "1 to 3 mm", "3 mm and more")[i % 3]


def test_lesions_lie_where_the_cache_says_in_patient_space(tmp_path):
    affine_free = [[10.0, 20.0, 30.0]]
    add_volume(tmp_path, "1.1", sites=(4,), places=affine_free)
    add_volume(tmp_path, "1.2", sites=())
    add_volume(tmp_path, "1.3", sites=(), unplaced=[(2, "unknown_image")])
    add_volume(tmp_path, "1.4", sites=(), labels=False)
    cache = finish_cache(tmp_path)
    run = write_run(tmp_path / "run", of_cache(cache), n_folds=1)
    predictions = read_run(run).predictions
    found = lesions(cache, predictions, None)
    # Voxels are (z, y, x), patient space is (x, y, z).
    np.testing.assert_allclose(found.lps_mm, [[30, 20, 10]])
    assert (found.series.tolist(), found.sites.tolist()) == ([0], [4])
    assert np.isnan(found.diameter_mm).all()
    # A candidate of the others may lie at a lesion that nobody marked.
    assert found.settled.tolist() == [True, True, False, False]
    write_candidates(run, cache, false_per_scan=5)
    where = localisation(predictions, found, read_run(run).candidates)
    assert where.scans.tolist() == [0, 1]
    assert set(where.candidate_scan.tolist()) <= {0, 1}


def test_lesions_beyond_the_volume_are_missed(tmp_path):
    """The place of each is known, so the scan counts; no candidate can be there."""
    add_volume(tmp_path, "1.1", sites=(4,), places=[[10.0, 20, 30]], unplaced=[(2, "outside_volume")])
    add_volume(tmp_path, "1.2", sites=(), unplaced=[(6, "outside_volume")])
    cache = finish_cache(tmp_path)
    run = write_run(tmp_path / "run", of_cache(cache), n_folds=1)
    write_candidates(run, cache, sensitivity=1, false_per_scan=0)
    found = evaluate([run], options=EvaluateOptions(samples=50, cache=cache.root))
    assert (found.froc.n_scans, found.froc.n_lesions, found.froc.n_outside) == (2, 3, 2)
    assert found.froc.at[8.0].value == pytest.approx(1 / 3)
    assert [(g.name, g.sensitivity.value) for g in found.froc.by_site] == [(SITES[2], 0), (SITES[4], 1), (SITES[6], 0)]
    page = write_report(found, tmp_path / "out", cases=1).read_text("utf-8")
    assert "3 lesions in 2 scans" in page
    assert "2 of them lie beyond the cached volume, and count as missed" in page


def write_radii(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("series_uid", "location", "x_mm", "y_mm", "z_mm", "radius_mm"), *rows])
    return path


def test_the_nearest_of_the_same_site_gives_the_diameter(tmp_path):
    add_volume(tmp_path, "1.1", sites=(4, 4), places=[[10.0, 20, 30], [40.0, 50, 60]])
    add_volume(tmp_path, "1.2", sites=(4,), places=[[10.0, 20, 30]])
    cache = finish_cache(tmp_path)
    predictions = read_run(write_run(tmp_path / "run", of_cache(cache), n_folds=1)).predictions
    table = write_radii(
        tmp_path / "truth.csv",
        [("1.1", SITES[4], 61, 50, 40, 4), ("1.1", SITES[4], 30, 21, 10, 1.5), ("1.1", SITES[5], 30, 20, 10, 9),
         ("1.2", SITES[4], 30, 20, 100, 2), ("1.3", "", "", "", "", "")],
    )  # fmt: skip
    found = lesions(cache, predictions, table)
    np.testing.assert_allclose(found.diameter_mm, [3, 8, np.nan])


def test_a_table_of_radii_that_is_none(tmp_path, report_cache, cached_run):
    predictions = read_run(cached_run).predictions
    with pytest.raises(DataError, match="table of lesions' sizes"):
        lesions(report_cache, predictions, tmp_path / "none.csv")


def test_a_cache_that_is_elsewhere(tmp_path, report_cache):
    run = write_run(tmp_path / "run", of_cache(report_cache), n_folds=1, cache="moved/away")
    alone = evaluate([run], options=EvaluateOptions(samples=50))
    assert alone.cache is None
    assert "moved/away, is not there; say with --cache" in alone.no_froc
    assert set(alone.groupings) == {"modality"}
    named = evaluate([run], options=EvaluateOptions(samples=50, cache=report_cache.root))
    assert set(named.groupings) == {"modality", "plane", "slice thickness"}
    assert named.no_froc.startswith("Not every run has candidates")
    with pytest.raises(CacheNotFoundError):
        evaluate([run], options=EvaluateOptions(cache=tmp_path / "none"))


def test_a_cache_of_other_series(tmp_path, report_cache):
    add_volume(tmp_path, "1.1")
    other = finish_cache(tmp_path)
    run = write_run(tmp_path / "run", of_cache(report_cache), n_folds=1)
    with pytest.raises(DataError, match="series that are not in"):
        evaluate([run], options=EvaluateOptions(samples=50, cache=other.root))
