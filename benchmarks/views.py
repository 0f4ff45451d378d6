"""
`python -m benchmarks.views`: what each view costs the worker that reads it, and how much leaves the worker.

A sample is read and projected from the chunks of cached phantom volumes of a scanner's size, on one thread, with files
in the page cache. The views take turns, round after round; what counts is CPU time, the least of the rounds for each
volume.
Prints Markdown; `--write` puts it into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import mean
from typing import Any

import numpy as np

from aneurysm.cache.cache import open_cache
from aneurysm.cache.volume import CachedVolume
from aneurysm.patches.samplers import uniform_start
from aneurysm.patches.views.config import MipConfig, Patch3dConfig, SlabConfig, SlicesConfig
from aneurysm.patches.views.pictures import read_pictures
from aneurysm.patches.views.view import Box, View
from benchmarks.options import add_usual_options, work_folder
from benchmarks.patch_data import make_cache
from benchmarks.table import Target, aims, command_line, machine, write_section

VIEWS = {
    "patch3d, 96 x 96 x 96": Patch3dConfig(),
    "slab, 16 x 192 x 192": SlabConfig(),
    "slices, 3 even, axial": SlicesConfig(),
    "slices, 3 even, coronal": SlicesConfig(plane="coronal"),
    "slices, 3 vascular, axial": SlicesConfig(pick="vascular"),
    "slices, 16 vascular triplets as a bag": SlicesConfig(count=16, pick="vascular", neighbours=1, stack="bag"),
    "mip, three planes": MipConfig(),
    "mip, three planes, slabs of 16 mm": MipConfig(slab_mm=16),
    "mip, three planes, maximum, mean and deviation": MipConfig(how=("max", "mean", "std")),
    "mip, axial, minimum inside the head": MipConfig(planes=("axial",), how=("min",)),
}
_SLICES = "slices, 3 even, axial"
_AIM_MS = 1.5
_PACKAGES = ("aneurysm", "numpy", "numcodecs", "imagecodecs")
_NOTES = """\
CPU milliseconds of one sample, mean over the volumes of the least of the rounds: what it takes to choose the pictures,
decode the chunks and project. MB are of the stored integers that leave the worker. A whole volume is decoded once for
any projections of it.
"""


def main() -> int:
    """Time all views, print, and say with the exit code whether the aim is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=8)
    parser.add_argument("--size", default="full", choices=("tiny", "small", "full"))
    parser.add_argument("--rounds", type=int, default=7)
    add_usual_options(parser)
    options = parser.parse_args()
    cache = open_cache(make_cache(work_folder(options), options.series, options.size))
    views = {name: config.build(cache.spec.spacing_mm, (96, 96, 96)) for name, config in VIEWS.items()}
    least: dict[tuple[str, int], float] = {}
    for number in range(options.rounds + 1):
        print(f"round {number} of {options.rounds}", file=sys.stderr)
        for name, view in views.items():
            for index, volume in enumerate(cache):
                ms = _cpu_ms(view, volume, np.random.default_rng((number, index)))
                if number:  # the first opens files
                    least[name, index] = min(ms, least.get((name, index), ms))
    found = {name: mean(least[name, i] for i in range(len(cache))) for name in views}
    voxels = mean(float(np.prod(v.shape)) for v in cache) / 1e6
    target = Target(
        f"three axial slices of a volume: at most {_AIM_MS} ms", f"{found[_SLICES]:.1f} ms", found[_SLICES] <= _AIM_MS
    )
    lines = ["# What a view costs", ""]
    lines += [f"- {key}: {value}" for key, value in machine(_PACKAGES).items()]
    lines += [
        f"- command: `{command_line('benchmarks.views')}`",
        f"- volumes: {len(cache)}, {voxels:.1f} M voxels each",
        "",
    ]
    lines += [_NOTES, *aims([target]), "", "| view | ms CPU | MB |", "|---|--:|--:|"]
    lines += [f"| {name} | {found[name]:.1f} | {_megabytes(view):.2f} |" for name, view in views.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        write_section(text)
    return 0 if target.met else 1


def _cpu_ms(view: View, volume: CachedVolume, rng: np.random.Generator) -> float:
    out: Any = np.empty((view.channels, *view.shape), volume.dtype)
    started = time.process_time()
    if isinstance(view, Box):
        volume.read(uniform_start(rng, volume.shape, view.shape), view.shape, out[0])
    else:
        read_pictures(volume, view.choose(volume, rng), out)
    return (time.process_time() - started) * 1000


def _megabytes(view: View) -> float:
    return view.channels * float(np.prod(view.shape)) * 2 / 1e6


if __name__ == "__main__":
    sys.exit(main())
