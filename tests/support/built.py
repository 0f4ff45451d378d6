"""Fixtures: data sets and the caches that uninterrupted runs made of them; and no process outlives its test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import call_cli, end_all
from tests.support.run_data import write_rsna_data, write_vessel_mask


@dataclass(frozen=True)
class Built:
    """A data set and the cache that one uninterrupted run made of it. Read only: copy before damaging."""

    data: Path
    cache: Path
    uids: list[str]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Four small series in the RSNA layout, the first with a vessel mask, cached by one worker."""
    root = tmp_path_factory.mktemp("built")
    uids = write_rsna_data(root / "data", n_series=4)
    write_vessel_mask(root / "data", uids[0], shape=(12, 64, 64))
    ran = call_cli("precache", "--data", root / "data", "--cache", root / "cache", "--workers", 1)
    assert ran.code == 0, ran.text
    return Built(root / "data", root / "cache", uids)


@pytest.fixture(scope="session")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Eight larger series, enough for a run of some seconds, cached without interruption."""
    root = tmp_path_factory.mktemp("long")
    uids = write_rsna_data(root / "data", n_series=8, shape=(40, 192, 192), spacing_mm=(4.0, 1.1, 1.1))
    ran = call_cli("precache", "--data", root / "data", "--cache", root / "cache", "--workers", 1)
    assert ran.code == 0, ran.text
    return Built(root / "data", root / "cache", uids)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_all()
