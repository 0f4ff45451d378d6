"""What the data ask for: how much room in the cache, and how much memory for the largest series."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from aneurysm.cache.folder import done_series
from aneurysm.cache.layout import CacheLayout
from aneurysm.lazy_sequence import LazySequence
from aneurysm.precaching.disk_space import packed_bytes, target_voxels
from aneurysm.precaching.finding import Finding, State
from aneurysm.precaching.folder_check import existing_folder
from aneurysm.processes.host import Host, memory_limit, mount_of, quota_left
from aneurysm.rawdata.bucket import open_data
from aneurysm.remote.url import is_url
from aneurysm.sizes import size_text, two_sizes_text
from aneurysm.spec import load_spec

_LOOKED_AT: Final = 6
_INODES: Final = 18
"""Files and folders of a volume, three and five; two of labels, and three and five of bone, which only CT has."""
_INODES_OF_MASK: Final = 8
_SPARE_INODES: Final = 1000
_LIBRARIES: Final = 250 * 10**6
_BYTES_PER_VOXEL: Final = 8
"""Beyond its libraries a process holds the volume as it is stored, and parts of it as floating point numbers."""


@dataclass(frozen=True)
class Needs:
    """What is still to be built takes: series, bytes and inodes in the cache; and the memory of the largest one."""

    series: int
    todo: int
    bytes: int
    inodes: int
    memory: int


def measure_needs(data: str | Path, cache: str | Path, spec: str | Path) -> Needs:
    """
    Return what a run will need, by a few series that stand for all.

    Raises
    ------
    DataError
        There is nothing to be built.
    SpecError
        There is no such spec.
    StoreError
        An object store fails.
    """
    recipe, given = load_spec(spec), open_data(data)
    sources = given.find_series(0).sources
    done = set() if is_url(cache) else done_series(CacheLayout(Path(cache).absolute()))
    missing = np.flatnonzero(np.fromiter((source.uid not in done for source in sources), bool, len(sources)))
    if not len(missing):
        return Needs(len(sources), 0, 0, 0, 0)
    sizes = (extent.bytes for extent in given.extents(LazySequence(sources.__getitem__, missing)))
    order = np.argsort(-np.fromiter(sizes, np.int64, len(missing)), kind="stable")
    todo = LazySequence(sources.__getitem__, missing[order])
    voxels = []
    for i in sorted({int(i) for i in np.linspace(0, len(todo) - 1, min(_LOOKED_AT, len(todo)))}):
        try:
            voxels.append(target_voxels(todo[i], recipe))
        except Exception:  # noqa: BLE001, S112 - whatever it is: its worker will say what is the matter
            continue
    masks = given.find_masks() or {}
    inodes = sum(_INODES + (_INODES_OF_MASK if source.uid in masks else 0) for source in todo)
    room = packed_bytes(float(np.mean(voxels)) * len(todo), recipe) if voxels else 0
    memory = _LIBRARIES + _BYTES_PER_VOXEL * max(voxels) if voxels else 0
    return Needs(len(sources), len(todo), room, inodes, memory)


def check_room(cache: Path, needs: Needs | None, host: Host) -> list[Finding]:
    """Compare what is free with what is needed, or only say what is free if that is not known."""
    base = existing_folder(cache)
    status = os.statvfs(base)
    mount = mount_of(base.resolve(), host)
    left = None if mount is None else quota_left(mount, host)
    room, inodes = (None, None) if needs is None else (needs.bytes, needs.inodes)
    findings = [
        _compared("free bytes", room, shutil.disk_usage(base).free, "another disk", is_bytes=True),
        # Some file systems make inodes as they are needed, and say that there are none.
        _compared(
            "free inodes", inodes and inodes + _SPARE_INODES, status.f_favail if status.f_files else None,
            "another file system",
        ),
    ]  # fmt: skip
    if left is None:
        return [*findings, Finding("quota", State.UNKNOWN, "no tool of this host tells of one for this file system")]
    bytes_left, files_left = left
    if bytes_left is None and files_left is None:
        return [*findings, Finding("quota", State.OK, "there is none")]
    quotas = [
        _compared("quota", room, bytes_left, "a place with a higher quota", is_bytes=True),
        _compared("quota of files", inodes, files_left, "a place with a higher quota"),
    ]
    return findings + [q for q, limit in zip(quotas, left, strict=True) if limit is not None]


def _compared(check: str, needed: int | None, free: int | None, place: str, is_bytes: bool = False) -> Finding:
    if free is None:
        return Finding(check, State.UNKNOWN, "the file system does not tell")
    if not needed:
        return Finding(check, State.UNKNOWN if needed is None else State.OK, f"{_amount(free, is_bytes)} free")
    need, has = two_sizes_text(needed, free) if is_bytes else (f"{needed:,}", f"{free:,}")
    found = f"about {need} needed, {has} free"
    if free < needed:
        return Finding(check, State.ERROR, found, f"Make room, or name {place} with --cache")
    return Finding(check, State.OK, found)


def _amount(number: int, is_bytes: bool) -> str:
    return size_text(number) if is_bytes else f"{number:,}"


def check_memory(workers: int, memory_mb: int | None, needs: Needs | None, host: Host) -> Finding:
    """Compare the memory that this job may have with that of the largest series, and of all workers at once."""
    limit = memory_limit(host)
    if limit is None:
        return Finding("memory", State.UNKNOWN, "how much this job may have is not known")
    has = f"{size_text(limit)} for this job"
    if needs is not None and needs.memory > limit:
        return Finding(
            "memory", State.ERROR, f"{has}, and the largest series takes about {size_text(needs.memory)}",
            "Ask for more memory",
        )  # fmt: skip
    if needs is not None and memory_mb is not None and needs.memory > memory_mb * 10**6:
        return Finding(
            "memory", State.WARNING, f"the largest series takes about {needs.memory // 10**6} MB",
            f"With --memory-mb {memory_mb} it would be a row, out_of_memory: give more",
        )  # fmt: skip
    each = memory_mb * 10**6 if memory_mb is not None else (needs.memory if needs else 0)
    if workers * each > limit:
        return Finding(
            "memory", State.WARNING, f"{has}, and {workers} workers may take {size_text(workers * each)}",
            "Fewer --workers, a lower --memory-mb, or more memory: else the kernel kills the largest",
        )  # fmt: skip
    if not each:
        return Finding("memory", State.UNKNOWN, f"{has}; what the largest series takes is not known")
    return Finding("memory", State.OK, f"{has}; {workers} workers take up to {size_text(workers * each)}")
