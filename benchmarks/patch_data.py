"""What the readers of patches are timed on: phantom series of a scanner's size and noise, cached by our commands."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aneurysm.cache.cache import open_cache

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aneurysm.cache.volume import CachedVolume
    from aneurysm.types import Triple

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Box:
    """A patch to read: index of the volume, and the first voxel (z, y, x)."""

    volume: int
    start: Triple


def make_cache(work: Path, series: int, size: str, spec: str = "rsna-1mm") -> Path:
    """Return a cache of phantom volumes below ``work``, made if it is not there (8 full series take a minute)."""
    data = work / f"phantom-{size}-{series}"
    cache = work / f"{data.name}-{spec}"
    done = cache / "made-for-benchmarks"
    if not done.exists():
        # Both commands go on where an earlier run was interrupted; phantom refuses a folder that is complete.
        if not data.exists() or (data / ".building").exists():
            _command("phantom", str(data), "--series", str(series), "--size", size, "--no-quirks")
        _command("precache", "--data", str(data), "--cache", str(cache), "--spec", spec)
        done.touch()
    return cache


def _command(*arguments: str) -> None:
    command = [sys.executable, "-m", "aneurysm", *arguments]
    print("aneurysm", *arguments, file=sys.stderr)
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)


def cached_volumes(cache: Path) -> list[CachedVolume]:
    """Return the volumes of a cache in the manifest's order, which is the same in every process."""
    return list(open_cache(cache))


def that_hold(volumes: list[CachedVolume], patch: Triple) -> list[int]:
    """Return the indices of the volumes that hold a patch wholly: most contenders can't read beyond an edge."""
    return [i for i, v in enumerate(volumes) if all(n >= m for n, m in zip(v.shape, patch, strict=True))]


def random_boxes(volumes: list[CachedVolume], patch: Triple, count: int, seed: tuple[int, ...]) -> list[Box]:
    """Draw volumes and places in them, all alike likely."""
    rng = np.random.default_rng(seed)
    indices = that_hold(volumes, patch)
    if not indices:
        raise SystemExit(f"no volume holds a patch of {patch} voxels: they are {[v.shape for v in volumes]}")
    boxes = []
    for index in rng.choice(indices, count):
        z, y, x = (int(rng.integers(n - m + 1)) for n, m in zip(volumes[index].shape, patch, strict=True))
        boxes.append(Box(int(index), (z, y, x)))
    return boxes


def size_mb(files: Iterable[Path]) -> float:
    """Return the sum of the files' lengths, in 10^6 bytes."""
    return sum(path.stat().st_size for path in files) / 1e6


def flush(files: Iterable[Path]) -> None:
    """Have the files on the disk: `forget` leaves alone what is not yet written."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def forget(files: Iterable[Path]) -> None:
    """Drop the files from the page cache; needs no rights. What some process maps at that moment stays."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
