"""A cache that a run takes a second for, the configuration of such a run, and what it leaves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from aneurysm.cache.cache import Cache
from aneurysm.training.config import ResolvedConfig
from aneurysm.training.config_file import load_config
from tests.support.noise_cache import add_volume, finish_cache

SHAPE = (36, 40, 44)


def make_cache(root: Path, n: int = 12, **options: Any) -> Cache:
    """``n`` series of as many patients, of CTA and MRA; two of three have an aneurysm, of three sites in turn."""
    for i in range(n):
        sites = (4 + i % 3,) if i % 3 else ()
        modality = "CTA" if i % 4 < 2 else "MRA"
        given = {"shape": SHAPE, "modality": modality, "sites": sites, "places": [(18, 20, 22)] * len(sites), **options}
        add_volume(root, f"1.{i}", patient=f"p{i}", **given)
    return finish_cache(root)


def quick(cache: Cache, **options: Any) -> ResolvedConfig:
    """A run of two epochs of four steps; dots in keys stand as double underscores."""
    given = {
        "cache": str(cache.root),
        "model": "tests.support.tiny:classifier",
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


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [
        {k: v for k, v in row.items() if k not in ("patches_per_s", "idle_share", "train_s", "val_s")} for row in rows
    ]


def assert_same(left, right, at: str = "") -> None:
    """Equal to the bit, but for times."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), at
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), at
        for key in left:
            assert_same(left[key], right[key], f"{at}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), at
        for i, (a, b) in enumerate(zip(left, right)):
            assert_same(a, b, f"{at}/{i}")
    else:
        assert left == right, at
