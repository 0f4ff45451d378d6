"""Fixture: caches of volumes that a test paints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from aneurysm.cache.cache import Cache, open_cache
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.tables import write_tables
from aneurysm.cache.volume import close_volumes
from aneurysm.cache.writer import write_volume
from aneurysm.spec import load_spec
from aneurysm.volume.blocks import Survey
from tests.support.cache_paths import volume_path
from tests.support.metadata import HU, metadata

SPEC = load_spec("rsna-1mm")
STRAIGHT = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
AIR = -1000
STEP = 60
"""Site k is painted as k + 1 such steps above the window's lower end."""
WINDOW = (-100.0, 900.0)


@dataclass
class Painted:
    """A volume of air in which single voxels mark sites."""

    uid: str
    shape: tuple[int, int, int]
    marks: tuple[tuple[int, tuple[int, int, int]], ...] = ()
    affine: np.ndarray = None
    head: np.ndarray = None
    voxels: np.ndarray = None
    window: tuple[float, float] = WINDOW

    def __post_init__(self):
        self.affine = STRAIGHT if self.affine is None else self.affine
        blocks = tuple(-(-n // 8) for n in self.shape)
        self.head = np.ones(blocks, bool) if self.head is None else self.head
        if self.voxels is None:
            self.voxels = np.full(self.shape, AIR, np.int16)
        for site, place in self.marks:
            self.voxels[place] = WINDOW[0] + (site + 1) * STEP


class PaintedCaches:
    """Writes caches below one folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def __call__(self, *volumes: Painted) -> Cache:
        self.count += 1
        root = self.root / str(self.count)
        for volume in volumes:
            blocks = Survey((8, 8, 8), volume.head, np.zeros_like(volume.head))
            intensity = replace(HU, window=tuple(map(float, volume.window)))
            own = metadata(
                volume.uid, affine=volume.affine, digest=SPEC.digest, intensity=intensity, blocks=blocks.pack()
            )
            folder = volume_path(root, volume.uid)
            write_volume(folder, volume.voxels, own, storage=SPEC.storage, fill=AIR)
        (root / "spec.toml").write_text(SPEC.to_toml())
        write_tables(CacheLayout(root))
        close_volumes()
        return open_cache(root)


@pytest.fixture
def painted(tmp_path) -> PaintedCaches:
    return PaintedCaches(tmp_path)
