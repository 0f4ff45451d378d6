"""A cache that a run takes a second for, and the configuration of such a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aneurysm.cache.catalog import Cache
from aneurysm.training.config import ResolvedConfig
from aneurysm.training.config_file import load_config
from tests.patches.conftest import add_volume, open_cache

SHAPE = (36, 40, 44)


def make_cache(root: Path, n: int = 12, **options: Any) -> Cache:
    """``n`` series of as many patients, of CTA and MRA; two of three have an aneurysm, of three sites in turn."""
    for i in range(n):
        sites = (4 + i % 3,) if i % 3 else ()
        modality = "CTA" if i % 4 < 2 else "MRA"
        given = {"shape": SHAPE, "modality": modality, "sites": sites, "places": [(18, 20, 22)] * len(sites), **options}
        add_volume(root, f"1.{i}", patient=f"p{i}", **given)
    return open_cache(root)


@pytest.fixture(scope="session")
def train_cache(tmp_path_factory) -> Cache:
    """Twelve small series. Don't change it."""
    return make_cache(tmp_path_factory.mktemp("train"))


def quick(cache: Cache, **options: Any) -> ResolvedConfig:
    """A run of two epochs of four steps; dots in keys stand as double underscores."""
    given = {
        "cache": str(cache.root),
        "model": "tests.training.tiny:classifier",
        "patch": [16, 16, 16],
        "batch_size": 4,
        "epochs": 2,
        "steps_per_epoch": 4,
        "folds": 3,
        "devices": 1,
        "workers": 0,
        "optimizer.learning_rate": 1e-2,
    }
    return load_config(None, given | {key.replace("__", "."): value for key, value in options.items()}).resolved()
