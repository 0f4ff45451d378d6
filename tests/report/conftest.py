"""A small cache and runs about its series, shared by the tests of the evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from aneurysm.labels import MODALITIES
from tests.patches.conftest import add_volume, open_cache
from tests.report.fake_runs import of_cache, write_candidates, write_run


@pytest.fixture(scope="session")
def report_cache(tmp_path_factory):
    """Forty series of noise, every second with a lesion or two, of all modalities. Don't change it."""
    root = tmp_path_factory.mktemp("report") / "cache"
    root.mkdir()
    for i in range(40):
        sites = () if i % 2 else ((i // 2 % 13,) if i % 4 else (i // 2 % 13, 6))
        places = np.array([[20.0, 24, 18], [28, 12, 30]])[: len(sites)]
        sites = tuple(dict.fromkeys(sites))
        patient = f"p{i // 2 if i > 35 else i}"
        shape, modality = (40, 44, 48), MODALITIES[i % 4]
        add_volume(root, f"1.2.{i + 1}", shape=shape, modality=modality, sites=sites, places=places[: len(sites)],
                   patient=patient)  # fmt: skip
    return open_cache(root)


@pytest.fixture(scope="session")
def cached_run(report_cache, tmp_path_factory):
    """A run that held out all of the cache's series, with candidates."""
    run = write_run(
        tmp_path_factory.mktemp("runs") / "run", of_cache(report_cache), n_folds=1, skill=2.0, cache=report_cache.root
    )
    write_candidates(run, report_cache)
    return run
