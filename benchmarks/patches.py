"""`make bench-patches`: milliseconds and memory of reading one random patch, beside other readers and loaders.

Each contender is a process of its own with one thread, all on the same core. They take turns, round after round (A B
C A B C), with the same patches, so that whatever else the machine does falls on all of them; what is compared are
times of the same round. Before that each one's patches are compared with ours, voxel for voxel. Prints Markdown;
`--write` puts it into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.options import add_usual_options, work_folder
from benchmarks.patch_data import cached_volumes, make_cache, random_boxes
from benchmarks.patch_worker import CONTENDERS, Round, Worker, digest_of
from benchmarks.table import Target, aims, command_line, machine, write_section

if TYPE_CHECKING:
    from aneurysm.cache.volume import CachedVolume
    from aneurysm.types import Triple

    # One patch size, warm or cold: the rounds of each contender, by their numbers.
    Rounds = dict[str, dict[int, Round]]

_PATCHES = ("64x64x64", "96x96x96", "128x128x128", "96x160x128")
_JUDGED = (96, 96, 96)
_RARE = 5  # very slow contenders take part in every fifth round
_PACKAGES = (
    "aneurysm", "numpy", "numcodecs", "zarr", "zarrs", "tensorstore", "nnunetv2", "blosc2", "acvl-utils", "monai",
    "torchio", "torch", "SimpleITK",
)  # fmt: skip
_NOTES = """\
A figure is the mean of one round of {patches} patches, in random volumes at random places wholly inside; fastest and
median are of the rounds. "x ours" is the median, over the rounds, of the contender's time over ours in the same round:
of the clock, and of CPU time. "Warm": all files are in the page cache. "Cold": before each patch the contender's files
are dropped from the page cache (posix_fadvise DONTNEED, mapped pages released before), not its open handles; "from
disk" is what the kernel then read for one patch, read-ahead included; whether the disk has a cache of its own, the
kernel can't tell.

Peak memory is the process's, libraries included, at the end of all sizes of patch; "before" is what the libraries and
open handles had taken. For memory-mapped files it counts pages of the page cache. nnU-Net's reader opens the case anew
for each patch, as its data loader does; only the image is cropped, and the segmentation's bytes are not counted. Its
files hold float32, here of the same integers; as z-scores, which its own preprocessing makes, they are larger. MONAI
and TorchIO draw places themselves; a round of TorchIO is an epoch of 8 patches for each volume, loading included.
"""


@dataclass
class Results:
    """All that was measured, and why a contender could not take part."""

    warm: dict[Triple, Rounds] = field(default_factory=dict)
    cold: dict[Triple, Rounds] = field(default_factory=dict)
    disk_mb: dict[str, float] = field(default_factory=dict)
    before_mb: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Parse the options, check and time everything, print, and say with the exit code whether the aims are met."""
    options = _options()
    work = work_folder(options)
    cache = make_cache(work.absolute(), options.series, options.size)
    volumes = cached_volumes(cache)
    patches = [_triple(text) for text in options.patch]
    results = Results()
    workers = _start(options.contenders, cache, results)
    started = list(workers.values())
    try:
        _check_all(workers, volumes, patches, results)
        for patch in patches:
            for cold, rounds in ((False, options.rounds), (True, options.cold_rounds)):
                to = results.cold if cold else results.warm
                to[patch] = _take_turns(workers, volumes, patch, rounds, options.count, results, cold=cold)
    finally:
        for worker in started:
            worker.stop()
    targets = _targets(results)
    text = _markdown(results, targets, volumes, options)
    print(text)
    if options.write:
        write_section(text)
    return 0 if all(target.met for target in targets) and not results.errors else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patch", nargs="+", default=list(_PATCHES), help="sizes of patches, as 96x160x128 (z, y, x)")
    parser.add_argument("--rounds", type=int, default=15, help="with everything in the page cache")
    parser.add_argument("--cold-rounds", type=int, default=5, help="with the page cache dropped before each patch")
    parser.add_argument("--count", type=int, default=32, help="patches in a round")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--series", type=int, default=8, help="phantom series to make")
    parser.add_argument("--size", choices=("full", "small", "tiny"), default="full", help="of the phantom series")
    add_usual_options(parser)
    parser.add_argument("--quick", action="store_true", help="few small series and rounds: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.series, options.size, options.patch = 3, "small", ["64x64x64", "96x96x96"]
        options.rounds, options.cold_rounds, options.count = 3, 1, 8
    return options


def _triple(text: str) -> Triple:
    z, y, x = (int(n) for n in text.split("x"))
    return z, y, x


def _start(keys: list[str], cache: Path, results: Results) -> dict[str, Worker]:
    workers = {}
    core = max(os.sched_getaffinity(0))
    for key in ["ours", *(k for k in keys if k != "ours")]:
        print(f"preparing {key}", file=sys.stderr)
        try:
            worker = Worker(key, cache, cache.with_name(f"{cache.name}-for") / key, core)
        except RuntimeError as error:
            _leave_out(workers, key, str(error), results)
            continue
        workers[key] = worker
        results.disk_mb[key], results.before_mb[key] = worker.disk_mb, worker.before_mb
    return workers


def _leave_out(workers: dict[str, Worker], key: str, problem: str, results: Results) -> None:
    if key == "ours":
        raise SystemExit(f"our own reader fails: {problem}")
    print(f"{key} is left out: {problem}", file=sys.stderr)
    results.errors[key] = problem
    workers.pop(key, None)


def _check_all(
    workers: dict[str, Worker], volumes: list[CachedVolume], patches: list[Triple], results: Results
) -> None:
    """Leave out who reads other voxels than `CachedVolume` does in this process; ours is checked against zarr's."""
    for patch in patches:
        boxes = random_boxes(volumes, patch, 4, (0, *patch))
        for key, worker in list(workers.items()):
            try:
                read = worker.check(patch, boxes)
            except RuntimeError as error:
                problem = str(error)
            else:
                same = all(digest_of(volumes[b.volume].read(b.start, patch)) == digest for b, digest in read)
                problem = "" if same else "reads other voxels"
            if problem:
                _leave_out(workers, key, problem, results)


def _take_turns(
    workers: dict[str, Worker],
    volumes: list[CachedVolume],
    patch: Triple,
    rounds: int,
    count: int,
    results: Results,
    *,
    cold: bool,
) -> Rounds:
    taken: Rounds = {key: {} for key in workers}
    keys = list(workers)
    # Round -1 is not counted: it brings the files into the page cache and handles into being.
    for number in range(-1, rounds):
        print(f"{patch}, {'cold' if cold else 'warm'}, round {number + 1} of {rounds}", file=sys.stderr)
        boxes = random_boxes(volumes, patch, count, (1 + number, *patch))
        # Each round another begins.
        first = number % len(keys)
        for key in keys[first:] + keys[:first]:
            if key not in workers or (number % _RARE and number >= 0 and workers[key].contender.rare):
                continue
            try:
                result = workers[key].read(patch, boxes, cold=cold)
            except RuntimeError as error:
                _leave_out(workers, key, str(error), results)
                continue
            if number >= 0:
                taken[key][number] = result
    return taken


def _ratios(rounds: Rounds, key: str, what: str) -> list[float]:
    """Return the contender's time over ours, for each round that it took part in."""
    ours = rounds["ours"]
    return [getattr(r, what) / getattr(ours[number], what) for number, r in rounds[key].items()]


def _targets(results: Results) -> list[Target]:
    rounds = results.warm.get(_JUDGED, {})
    targets = []

    def judge(key: str, aim: str, least: float, *, above: bool = False) -> None:
        if key in rounds:
            ratio = median(_ratios(rounds, key, "wall_ms"))
            targets.append(Target(f"{aim}, warm, 96^3", f"{ratio:.2f}x", ratio > least if above else ratio >= least))

    judge("nnunet", "at least as fast as nnU-Net's reader (float32)", 1)
    judge("nnunet-int16", "at least as fast as nnU-Net's reader, given int16", 1)
    for key, kind in (("nnunet", "float32"), ("nnunet-int16", "int16")):
        if key in rounds:
            ours, theirs = results.disk_mb["ours"], results.disk_mb[key]
            aim = f"no more bytes on disk than nnU-Net's files ({kind})"
            targets.append(Target(aim, f"{ours:.1f} and {theirs:.1f} MB", ours <= theirs))
    judge("zarr-python", "at least 10x as fast as zarr-python", 10)
    judge("zarrs", "faster than zarrs", 1, above=True)
    judge("tensorstore", "faster than tensorstore", 1, above=True)
    judge("npy", "within 4x of the uncompressed memory map (at least 0.25x as fast)", 0.25)
    return targets


def _markdown(results: Results, targets: list[Target], volumes: list[CachedVolume], options: argparse.Namespace) -> str:
    raw_mb = sum(v.dtype.itemsize * v.shape[0] * v.shape[1] * v.shape[2] for v in volumes) / 1e6
    lines = ["# Reading one random patch, beside other readers and loaders", ""]
    lines += [f"- {key}: {value}" for key, value in machine(_PACKAGES).items()]
    lines += [
        f"- volumes: {len(volumes)} phantom series ({options.size}), {raw_mb:.0f} MB of int16, of "
        + ", ".join("x".join(map(str, v.shape)) for v in volumes),
        f"- command: `{command_line('benchmarks.patches')}`",
        f"- {options.rounds} warm and {options.cold_rounds} cold rounds; MONAI and TorchIO in every {_RARE}th",
        "",
        _NOTES.format(patches=options.count),
    ]
    lines += aims(targets)
    for title, times in (("warm", results.warm), ("cold", results.cold)):
        for patch, rounds in times.items():
            lines += [f"## {'x'.join(map(str, patch))}, {title}", "", *_table(rounds, cold=title == "cold"), ""]
    lines += ["## Bytes and memory", "", *_footprint(results, raw_mb), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(rounds: Rounds, *, cold: bool) -> list[str]:
    lines = [
        f"| reader | fastest ms | median ms | x ours | CPU ms | CPU x ours |{' from disk MB |' if cold else ''}",
        f"|---|--:|--:|--:|--:|--:|{'--:|' if cold else ''}",
    ]
    for key, taken in rounds.items():
        wall, cpu = ([getattr(r, what) for r in taken.values()] for what in ("wall_ms", "cpu_ms"))
        if not wall:
            continue
        lines.append(
            f"| {CONTENDERS[key].title} | {min(wall):.2f} | {median(wall):.2f} | "
            f"{median(_ratios(rounds, key, 'wall_ms')):.2f} | {median(cpu):.2f} | "
            f"{median(_ratios(rounds, key, 'cpu_ms')):.2f} |"
            + (f" {median(r.read_mb for r in taken.values()):.2f} |" if cold else "")
        )
    return lines


def _footprint(results: Results, raw_mb: float) -> list[str]:
    lines = ["| reader | on disk MB | of the int16 | peak MB | before MB |", "|---|--:|--:|--:|--:|"]
    for key, disk_mb in results.disk_mb.items():
        every = [r for times in (results.warm, results.cold) for t in times.values() for r in t.get(key, {}).values()]
        if every:
            lines.append(
                f"| {CONTENDERS[key].title} | {disk_mb:.1f} | {disk_mb / raw_mb:.0%} | "
                f"{max(r.peak_mb for r in every):.0f} | {results.before_mb[key]:.0f} |"
            )
    for key, error in results.errors.items():
        lines.append(f"| {CONTENDERS[key].title} | can't: {error.replace('|', '/')} | | | |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
