"""A cache of small volumes that the tests of patches share."""

from __future__ import annotations

import pytest

from aneurysm.cache.cache import Cache
from aneurysm.labels import MODALITIES
from tests.support.noise_cache import add_volume, finish_cache


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory) -> Cache:
    """Twelve series of all modalities, every second with one or two lesions, one with a mask. Don't change it."""
    root = tmp_path_factory.mktemp("patches")
    for i in range(12):
        sites = () if i % 2 else ((i % 13,) if i % 4 else (i % 13, 6))
        add_volume(root, f"1.{i}", shape=(70, 80 + i, 90), modality=MODALITIES[i % 4], sites=sites, mask=i == 4)
    return finish_cache(root)
