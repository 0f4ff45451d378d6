"""`python -m benchmarks.chunks`: what chunk, codec, level, shuffle and type cost and save, read by our own reader.

One volume of each modality is written with each choice by the writer of the cache, and random patches are read. Each
choice takes turns with the spec's own, with the same patches, on one core; "x" is the median of its times over the
spec's in the same round. Prints Markdown; `--write` puts it into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from aneurysm.cache.cache import Cache, open_cache
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.volume import CachedVolume, close_volumes
from aneurysm.cache.writer import write_volume
from aneurysm.processes.threads import limit_threads
from aneurysm.spec import StorageSpec, load_spec
from benchmarks.options import add_usual_options, work_folder
from benchmarks.patch_data import make_cache, random_boxes, size_mb, that_hold
from benchmarks.table import command_line, machine, write_section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aneurysm.types import Triple
    from benchmarks.patch_data import Box

PATCH = (96, 96, 96)
SPECS = {"int16": "rsna-1mm", "uint8": "rsna-1mm-u8"}
CHUNKS = ((16, 16, 16), (24, 24, 24), (32, 32, 32), (48, 48, 48), (16, 32, 32), (64, 64, 64))
CODECS = ("lz4", "lz4hc", "zstd")
LEVELS = (1, 3, 9)
SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")
_PACKAGES = ("aneurysm", "numpy", "numcodecs", "zarr")
_NOTES = """\
A figure is the mean of a round of {count} patches of 96^3, warm; fastest and median are of {rounds} rounds. "x" is the
median, over the rounds, of the time over that of the spec's own storage (in bold) in the same round. "Of raw" is bytes
on disk over those of the bare integers; "written" is of bare integers, hash included. A choice that no other beats in
both median "x" and bytes, within its type, is marked *.
"""


@dataclass(frozen=True)
class Choice:
    """One storage, and what was found."""

    storage: StorageSpec
    wall_ms: list[float]
    ratio: float
    of_raw: float
    written_mb_s: float


def main() -> None:
    """Parse the options, try every choice, print."""
    options = _options()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    limit_threads(1)
    work = work_folder(options)
    tables = {}
    for dtype in options.dtypes:
        cache = open_cache(make_cache(work, options.series, options.size, SPECS[dtype]))
        with tempfile.TemporaryDirectory(dir=work) as folder:
            tables[dtype] = list(_try_all(cache, Path(folder), options))
    text = _markdown(tables, options)
    print(text)
    if options.write:
        write_section(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=16, help="patches in a round")
    parser.add_argument("--dtypes", nargs="+", choices=SPECS, default=list(SPECS))
    parser.add_argument("--levels", nargs="+", type=int, default=list(LEVELS))
    parser.add_argument("--series", type=int, default=8, help="phantom series to make; one of each modality is used")
    parser.add_argument("--size", choices=("full", "small"), default="full", help="of the phantom series")
    add_usual_options(parser)
    parser.add_argument("--quick", action="store_true", help="few choices and rounds: does it run?")
    options = parser.parse_args()
    options.chunks = CHUNKS
    if options.quick:
        options.series, options.size, options.chunks, options.levels = 3, "small", CHUNKS[2:3], [1]
        options.rounds, options.count, options.dtypes = 2, 8, ["int16"]
    return options


def _one_of_each(cache: Cache) -> list[CachedVolume]:
    volumes = list(cache)
    first = {cache.modalities[i]: volumes[i] for i in reversed(that_hold(volumes, PATCH))}
    return [first[modality] for modality in sorted(first)]


def _try_all(cache: Cache, folder: Path, options: argparse.Namespace) -> Iterator[Choice]:
    sources = _one_of_each(cache)
    own = cache.spec.storage
    reference, _ = _write(sources, own, folder / "own")
    choices = product(options.chunks, CODECS, options.levels, SHUFFLES)
    storages = [StorageSpec(dtype=own.dtype, chunk=c, codec=n, level=k, shuffle=s) for c, n, k, s in choices]
    for i, storage in enumerate(storages):
        # A folder of its own for each: open volumes are known by their path.
        at = folder / str(i)
        volumes, seconds = _write(sources, storage, at)
        wall_ms, ratio = _compare(volumes, reference, options.rounds, options.count)
        raw_mb = sum(np.prod(v.shape) for v in volumes) * np.dtype(own.dtype).itemsize / 1e6
        disk_mb = sum(size_mb(p for p in (v.path / "0").rglob("*") if p.is_file()) for v in volumes)
        of_raw = disk_mb / raw_mb
        # The table comes only at the end.
        done = f"{own.dtype}, {i + 1} of {len(storages)}: {_name(storage)}: {ratio:.2f}x, {of_raw:.1%}"
        print(done, file=sys.stderr, flush=True)
        yield Choice(storage, wall_ms, ratio, of_raw, raw_mb / seconds)
        shutil.rmtree(at)
    close_volumes()


def _write(sources: list[CachedVolume], storage: StorageSpec, root: Path) -> tuple[list[CachedVolume], float]:
    """Return the same voxels stored so, and the seconds that the writing took."""
    seconds, written = 0.0, []
    for source in sources:
        voxels: Any = source.read((0, 0, 0), source.shape)
        fill = int(zarr.open_array(source.path / "0", mode="r").fill_value)
        path = CacheLayout(root).volume(source.uid)
        started = time.perf_counter()
        write_volume(path, voxels, source.metadata, storage=storage, fill=fill)
        seconds += time.perf_counter() - started
        copy = CachedVolume(root, source.uid)
        if not np.array_equal(copy.read((0, 0, 0), copy.shape), voxels):
            raise SystemExit(f"{_name(storage)}: other voxels came back")
        written.append(copy)
    return written, seconds


def _compare(
    volumes: list[CachedVolume], reference: list[CachedVolume], rounds: int, count: int
) -> tuple[list[float], float]:
    """Return milliseconds per patch, a value for each round, and the median ratio to the reference."""
    wall_ms, ratios = [], []
    for number in range(-1, rounds):
        boxes = random_boxes(volumes, PATCH, count, (1 + number,))
        # Each begins every other round; the round -1 is not counted.
        if number % 2:
            own, theirs = _read(volumes, boxes), _read(reference, boxes)
        else:
            theirs, own = _read(reference, boxes), _read(volumes, boxes)
        if number >= 0:
            wall_ms.append(own)
            ratios.append(own / theirs)
    return wall_ms, median(ratios)


def _read(volumes: list[CachedVolume], boxes: list[Box], patch: Triple = PATCH) -> float:
    started = time.perf_counter()
    for box in boxes:
        volumes[box.volume].read(box.start, patch)
    return (time.perf_counter() - started) / len(boxes) * 1e3


def _name(storage: StorageSpec) -> str:
    return f"{'x'.join(map(str, storage.chunk))} {storage.codec} {storage.level} {storage.shuffle}"


def _markdown(tables: dict[str, list[Choice]], options: argparse.Namespace) -> str:
    lines = ["# Chunks, codecs and shuffles", ""]
    lines += [f"- {key}: {value}" for key, value in machine(_PACKAGES).items()]
    lines += [
        f"- volumes: one of each modality of {options.series} phantom series ({options.size})",
        f"- command: `{command_line('benchmarks.chunks')}`",
        "",
        _NOTES.format(count=options.count, rounds=options.rounds),
    ]
    for dtype, choices in tables.items():
        lines += [
            f"## {dtype}",
            "",
            "| | chunk (z, y, x) | codec | level | shuffle | fastest ms | median ms | x | of raw | written MB/s |",
            "|---|---|---|--:|---|--:|--:|--:|--:|--:|",
            *(_row(choice, choices, dtype) for choice in choices),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _row(choice: Choice, choices: list[Choice], dtype: str) -> str:
    storage = choice.storage
    beaten = any(other.ratio < choice.ratio and other.of_raw < choice.of_raw for other in choices)
    mark = "**" if storage == load_spec(SPECS[dtype]).storage else ""
    chunk = "x".join(map(str, storage.chunk))
    return (
        f"| {'' if beaten else '*'} | {mark}{chunk}{mark} | {mark}{storage.codec}{mark} | {storage.level} | "
        f"{mark}{storage.shuffle}{mark} | {min(choice.wall_ms):.2f} | {median(choice.wall_ms):.2f} | "
        f"{choice.ratio:.2f} | {choice.of_raw:.1%} | {choice.written_mb_s:.0f} |"
    )


if __name__ == "__main__":
    main()
