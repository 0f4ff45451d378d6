"""A small cache and runs about its series, shared by the tests of the evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aneurysm.labels import MODALITIES
from aneurysm.report.evaluate import EvaluateOptions, evaluate
from aneurysm.report.page import write_report
from tests.patches.conftest import add_volume, open_cache
from tests.report.fake_runs import of_cache, write_candidates, write_run


def set_source(root, uid, *, plane, thickness):
    path = root / "volumes" / f"{uid}.zarr" / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["aneurysm"]["source"] |= {
        "plane": plane, "spacing_mm": [9.0, 1.0, 1.0], "acquisition": {"SliceThickness": thickness},
    }  # fmt: skip
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def report_cache(tmp_path_factory):
    """Forty series of noise, every second with a lesion or two, of all modalities. Don't change it."""
    root = tmp_path_factory.mktemp("report") / "cache"
    root.mkdir()
    for i in range(40):
        sites = () if i % 2 else ((i // 2 % 13,) if i % 4 else (i // 2 % 13, 6))
        sites = tuple(dict.fromkeys(sites))
        places = np.array([[20.0, 24, 18], [28, 12, 30]])[: len(sites)]
        patient = f"p{i // 2 if i > 35 else i}"
        shape, modality = (40, 44, 48), MODALITIES[i % 4]
        add_volume(root, f"1.2.{i + 1}", shape=shape, modality=modality, sites=sites, places=places, patient=patient)
        set_source(root, f"1.2.{i + 1}", plane="sagittal" if i % 8 == 0 else "axial", thickness=(0.5, 1.2, 5)[i % 3])
    return open_cache(root)


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
    found = evaluate([cached_run], EvaluateOptions(samples=100))
    write_report(found, out, cases=1)
    return found, out
