"""Series still to be built -> bytes they will need, checked against the free space before anything starts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from aneurysm.errors import NoSpaceError
from aneurysm.precaching.header_check import planned_volume, read_source_headers
from aneurysm.processes.children import NO_LIMITS, Limits, Runner, StoppedError
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.sizes import two_sizes_text
from aneurysm.spec import CacheSpec

_LOOKED_AT: Final = 6
_PACKED: Final = 0.35
"""Bytes on disk by bytes of voxels: head CT and MR at 1 mm pack to 0.2 to 0.35 of their size."""
_SPARE: Final = 16 * 2**20


def check_space(
    todo: Sequence[SeriesSource],
    spec: CacheSpec,
    cache: Path,
    processes: Runner,
    limits: Limits = NO_LIMITS,
    *,
    patience_s: float = 60.0,
) -> int:
    """
    Return the estimated bytes of ``todo`` in the cache; ``todo`` is ordered by size.

    A few series spread over it are looked at by ``processes``, headers only, and stand for the rest. One that takes
    more than ``limits`` is passed over, and after ``patience_s`` for all of them those that are known stand for the
    rest: a file that hangs on reading is not waited for.

    Raises
    ------
    NoSpaceError
        The file system of ``cache`` has less than that free.
    """
    if not todo:
        return 0
    picked = sorted({int(i) for i in np.linspace(0, len(todo) - 1, min(_LOOKED_AT, len(todo)))})
    # The smallest first: if time is over, too little is expected, and nothing refused that has room.
    sizes = _within(patience_s, [todo[i] for i in reversed(picked)], spec, processes, limits)
    if not sizes:
        return 0
    needed = packed_bytes(float(np.mean(sizes)) * len(todo), spec)
    free = shutil.disk_usage(cache).free
    if free < needed:
        need, has = two_sizes_text(needed, free)
        raise NoSpaceError(
            f"{len(todo)} series need about {need} in {cache}, and {has} are free. "
            "Name a cache folder on another disk, or build a part of it with --limit or --series"
        )
    return needed


def packed_bytes(voxels: float, spec: CacheSpec) -> int:
    """Return about how many bytes on disk volumes of so many voxels together take."""
    return int(voxels * np.dtype(spec.storage.dtype).itemsize * _PACKED) + _SPARE


def _within(
    seconds: float, sources: Sequence[SeriesSource], spec: CacheSpec, processes: Runner, limits: Limits
) -> list[int]:
    """Return the voxels of those ``sources`` that can be looked at in this many seconds, one after the other."""
    sizes: list[int] = []
    end = time.monotonic() + seconds
    for source in sources:
        left = min(end - time.monotonic(), limits.timeout_s or seconds)
        if left <= 0:
            break
        try:
            sizes.append(processes.run(target_voxels, source, spec, limits=replace(limits, timeout_s=left)))
        except StoppedError:
            raise
        except Exception:  # noqa: BLE001, S112 - whatever it is: its worker will say what is the matter
            continue
    return sizes


def target_voxels(source: SeriesSource, spec: CacheSpec) -> int:
    """Return the voxels of the volume that a series becomes, by its headers. Raises what reading them raises."""
    _, grid = planned_volume(read_source_headers(source), spec)
    return int(np.prod(grid.shape))
