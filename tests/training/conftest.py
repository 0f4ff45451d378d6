"""A small cache and a run on it that the tests of training share."""

from __future__ import annotations

import pytest

from aneurysm.cache.cache import Cache
from aneurysm.training.fit import fit
from aneurysm.training.run_folder import RunFolder
from tests.support.train_runs import make_cache, quick


@pytest.fixture(scope="session")
def train_cache(tmp_path_factory) -> Cache:
    """Twelve small series. Don't change it."""
    return make_cache(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="session")
def straight(train_cache, tmp_path_factory) -> RunFolder:
    """Two epochs without a stop. Don't change it."""
    folder = RunFolder(tmp_path_factory.mktemp("straight") / "run")
    fit(quick(train_cache), folder)
    return folder
