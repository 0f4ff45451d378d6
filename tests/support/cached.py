"""Run precache and look at what came out, by zarr and csv alone: nothing of aneurysm's own readers."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from aneurysm.precaching.run import precache
from tests.support.cache_paths import record_path, volume_path

CLOSEST = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""LPS (rows) of the axes z, y, x (columns) of a cached volume that is not oblique."""


@dataclass(frozen=True)
class CachedImage:
    """One cached volume: physical values, affine, and the attribute ``aneurysm``."""

    path: Path
    stored: np.ndarray
    meta: dict[str, Any]

    @property
    def affine(self) -> np.ndarray:
        return np.asarray(self.meta["affine_lps"], dtype=np.float64)

    @property
    def physical(self) -> np.ndarray:
        intensity = self.meta["intensity"]
        return self.stored.astype(np.float64) * intensity["scale"] + intensity["offset"]

    @property
    def spacing_mm(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def codes(self) -> set[str]:
        return {decision["code"] for decision in self.meta["decisions"]}

    @property
    def lesions(self) -> list[dict[str, Any]]:
        return list(self.meta["lesions"])

    @property
    def unplaced(self) -> list[dict[str, Any]]:
        return list(self.meta["unplaced_lesions"])

    def centres(self) -> np.ndarray:
        """LPS of every voxel centre: (z, y, x, 3)."""
        index = np.stack(np.meshgrid(*map(np.arange, self.stored.shape), indexing="ij"), axis=-1)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def zyx(self, lps: np.ndarray) -> np.ndarray:
        """Continuous voxel coordinates of LPS points (..., 3)."""
        return (np.asarray(lps) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def lps(self, zyx: np.ndarray) -> np.ndarray:
        return np.asarray(zyx) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def at(self, lps: np.ndarray) -> float:
        """The physical value of the voxel nearest to a point."""
        index = np.rint(self.zyx(lps)).astype(int)
        assert (index >= 0).all(), f"{lps} is outside the volume"
        return float(self.physical[tuple(index)])

    def vessels(self) -> np.ndarray | None:
        if not (self.path / "labels" / "vessels").exists():
            return None
        return np.asarray(zarr.open_array(self.path / "labels" / "vessels" / "0", mode="r"))


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    cache: Path
    cached: int
    rejected: int
    failed: int

    def rows(self) -> dict[str, dict[str, str]]:
        with (self.cache / "manifest.csv").open(newline="") as file:
            return {row["series_uid"]: row for row in csv.DictReader(file)}

    def row(self, uid: str | None = None) -> dict[str, str]:
        rows = self.rows()
        if uid is None:
            assert len(rows) == 1, f"one series was expected: {list(rows.values())}"
            return next(iter(rows.values()))
        return rows[uid]

    def image(self, uid: str | None = None) -> CachedImage:
        row = self.row(uid)
        assert row["status"] == "cached", f"{row['status']}: {row['reason']}: {row['detail']}"
        path = volume_path(self.cache, row["series_uid"])
        group = zarr.open_group(path, mode="r")
        return CachedImage(path, np.asarray(group["0"]), dict(group.attrs["aneurysm"]))

    def reason(self, uid: str | None = None) -> str:
        row = self.row(uid)
        assert row["status"] != "cached", f"cached, with {self.image(row['series_uid']).meta['decisions']}"
        assert row["detail"], "a reason needs its detail"
        record = json.loads((record_path(self.cache, row["series_uid"])).read_text())
        assert row["reason"] in json.dumps(record)
        return row["reason"]

    def lesion_rows(self) -> list[dict[str, str]]:
        with (self.cache / "lesions.csv").open(newline="") as file:
            return list(csv.DictReader(file))


def run(data: Path, **options: Any) -> Outcome:
    """Precache ``data`` into a cache beside it, in this process."""
    cache = data.parent / f"{data.name}.cache"
    options.setdefault("workers", 0)
    summary = precache(data, cache, **options)
    return Outcome(cache, summary.cached, summary.rejected, summary.failed)


def cached(data: Path, **options: Any) -> CachedImage:
    """Precache a folder that holds one series, and return its volume."""
    return run(data, **options).image()


def rejected(data: Path, **options: Any) -> str:
    """Precache a folder that holds one series, and return why it is not cached."""
    outcome = run(data, **options)
    assert (outcome.cached, outcome.rejected, outcome.failed) == (0, 1, 0), outcome.row()
    return outcome.reason()
