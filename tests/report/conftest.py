"""Runs about the series of a small cache, shared by the tests of the evaluation."""

from __future__ import annotations

import pytest

from aneurysm.report.evaluate import evaluate
from aneurysm.report.evaluation import EvaluateOptions
from aneurysm.report.page import write_report
from tests.support.fake_runs import of_cache, write_candidates, write_run


@pytest.fixture(scope="session")
def cached_run(report_cache, tmp_path_factory):
    """A run that held out all of the cache's series, with candidates."""
    root, series = tmp_path_factory.mktemp("runs") / "run", of_cache(report_cache)
    run = write_run(root, series, n_folds=1, skill=2.0, seed=1, cache=report_cache.root)
    write_candidates(run, report_cache)
    return run


@pytest.fixture(scope="session")
def report(cached_run, tmp_path_factory):
    """The evaluation of that run, and the folder of its report."""
    out = tmp_path_factory.mktemp("report")
    found = evaluate([cached_run], options=EvaluateOptions(samples=100))
    write_report(found, out, cases=1)
    return found, out
