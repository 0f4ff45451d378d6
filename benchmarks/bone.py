"""`python -m benchmarks.bone`: what the label of bone finds, what of the vessels it takes, and what it costs.

Synthetic CTA with vessel masks, an aneurysm in each at another site, is cached, and the label compared with the bone
that the phantom drew: the same scene, in which bone alone is bright, on the grid of the cache. Vessels are compared
also where contrast is stronger: 150 and 300 HU are added to the voxels of the vessel mask.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aneurysm.cache import writer
from aneurysm.cache.folder import prepare_cache
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.volume import CachedVolume
from aneurysm.labels import SITES, VESSEL_VALUES
from aneurysm.phantom.acquisition import acquire
from aneurysm.phantom.plan import SeriesPlan, plan_series
from aneurysm.phantom.render import Renderer
from aneurysm.phantom.scanner import SliceStack
from aneurysm.phantom.scene import draw_scene
from aneurysm.phantom.series import write_series
from aneurysm.precaching.build_series import SeriesJob, build_series
from aneurysm.processes.threads import limit_threads
from aneurysm.rawdata.folder import find_series
from aneurysm.rawdata.tables import SeriesNotes
from aneurysm.spec import load_spec
from aneurysm.types import Point
from aneurysm.volume.bone import find_bone
from aneurysm.volume.cells import expand_cells
from benchmarks.options import add_usual_options, work_folder
from benchmarks.table import Target, aims, command_line, machine, write_section

_SEED = 5
_ADDED_HU = (0, 150, 300)
_BRIGHT_HU = 300
_MOST_COST = 0.10
_TITLE = "# Bone, and what of the vessels it takes"


@dataclass
class Tally:
    """Voxels of vessels, and how many of them are labelled as bone, by what was added to them and by site."""

    total: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(_ADDED_HU), len(SITES)), np.int64))
    lost: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(_ADDED_HU), len(SITES)), np.int64))
    dice: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    centres: list[tuple[str, bool]] = field(default_factory=list)
    share: list[float] = field(default_factory=list)


def plan(size: str, index: int) -> SeriesPlan:
    """Return the plan of one series: each site in its turn."""
    site = SITES[index % len(SITES)]
    return plan_series(_SEED, index, modality="CTA", size=size, sites=(site,), quirks=("mask",))


def true_bone(planned: SeriesPlan, volume: CachedVolume) -> tuple[NDArray[np.bool_], list[Point]]:
    """Return which voxels of a cached series are bone by half at least, and the centres of its aneurysms (LPS mm)."""
    streams = planned.streams
    scene = draw_scene(planned.modality, planned.sites, streams, planned.difficulty)
    centres = scene.pose.to_lps(np.array([lesion.center for lesion in scene.lesions]).reshape(-1, 3))
    stack = acquire(planned, scene.pose, centres).true
    dark = dict.fromkeys((entry.name for entry in fields(scene.tissues)), 0.0)
    alone = replace(scene, tissues=type(scene.tissues)(**(dark | {"bone": 1.0, "marrow": 1.0})))
    renderer = Renderer(alone, stack, streams("head"))
    affine, shape = volume.affine_lps, volume.shape
    z_mm, y_mm, x_mm = volume.metadata.spacing_mm
    column, row = affine[:3, 1] / y_mm, affine[:3, 2] / x_mm
    if not (np.allclose(row, stack.row, atol=1e-6) and np.allclose(column, stack.column, atol=1e-6)):
        raise SystemExit("the axes of the cache are not the scanner's, so the phantom can't be drawn on them")
    corners = affine[:3, 3] + np.arange(shape[0])[:, None] * affine[:3, 0]
    grid = SliceStack(corners, row, column, (y_mm, x_mm), (shape[1], shape[2]), z_mm)
    bone = np.empty(shape, bool)
    for k, image, _ in renderer.slices(grid):
        bone[k] = image > 0.5
    return bone, [tuple(centre) for centre in centres]


def compare(volume: CachedVolume, planned: SeriesPlan, tally: Tally) -> None:
    """Add one series to a tally."""
    truth, centres = true_bone(planned, volume)
    shape, origin = volume.shape, (0, 0, 0)
    voxels, vessels = volume.read(origin, shape), volume.read_vessels(origin, shape)
    label = volume.read_bone(origin, shape)
    tally.dice.append(_dice(label, truth))
    tally.share.append(float(label.mean()))
    bright = (voxels > _BRIGHT_HU) & (vessels == 0)
    tally.left.append(float((bright & ~label).sum() / bright.sum()))
    for i, added in enumerate(_ADDED_HU):
        brighter = voxels + np.where(vessels > 0, added, 0).astype(voxels.dtype)
        found = find_bone(brighter, volume.intensity, volume.metadata.spacing_mm)
        assert found is not None
        bone = expand_cells(found.cells, found.edge, origin, shape)
        if not added:
            assert np.array_equal(bone, label)
        for site, value in enumerate(VESSEL_VALUES):
            of_site = vessels == value
            tally.total[i, site] += int(of_site.sum())
            tally.lost[i, site] += int((of_site & bone).sum())
    to_voxel = np.linalg.inv(volume.affine_lps)
    for name, centre in zip(planned.sites, centres, strict=True):
        z, y, x = np.rint(to_voxel[:3, :3] @ np.array(centre) + to_voxel[:3, 3]).astype(int)
        if all(0 <= at < n for at, n in zip((z, y, x), shape, strict=True)):
            tally.centres.append((name, bool(label[z, y, x])))


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


class _Clock:
    """CPU seconds within two functions of the writer: finding bone, and writing its label."""

    def __init__(self) -> None:
        self.cpu_s = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.cpu_s += time.process_time() - started

        return timed


def measure_cost(data: Path, cache: Path, repeats: int) -> dict[str, tuple[float, float]]:
    """Build each series of ``data`` some times in this process; return its least CPU seconds, and those for bone."""
    spec, clock = load_spec("rsna-1mm"), _Clock()
    writer.find_bone = clock.around(writer.find_bone)  # type: ignore[attr-defined]
    writer.write_bone = clock.around(writer.write_bone)
    sources = find_series(data).sources
    masks = {path.name.removesuffix("_cowseg.nii"): path for path in (data / "segmentations").glob("*_cowseg.nii")}
    prepare_cache(CacheLayout(cache), spec)
    found: dict[str, tuple[float, float]] = {}
    for source in sources:
        runs = []
        for _ in range(repeats + 1):  # the first warms up
            job = SeriesJob(source, SeriesNotes(), masks[source.uid], cache, spec, b"", overwrite=True)
            clock.cpu_s, started = 0.0, time.process_time()
            outcome = build_series(job)
            runs.append((time.process_time() - started, clock.cpu_s))
            if outcome.status != "cached":
                raise SystemExit(f"{outcome.reason}: {outcome.detail}")
        found[source.uid] = min(runs[1:])
    return found


def page(tally: Tally, costs: dict[str, tuple[float, float]], about: dict[str, str], title: str) -> str:
    """Return the section of RESULTS.md."""
    shares = [bone / built for built, bone in costs.values()]
    built_s, bone_s = np.mean(list(costs.values()), axis=0)
    inside = sum(hidden for _, hidden in tally.centres)
    names = ", ".join(sorted({site for site, hidden in tally.centres if hidden}))
    lines = [title, "", *[f"- {key}: {value}" for key, value in about.items()], ""]
    lines += (__doc__ or "").split("\n\n", 1)[1].strip().splitlines()
    lines += ["", f"{len(tally.dice)} series, of which {np.mean(tally.share):.1%} of the voxels are labelled.", ""]
    lines += aims(
        [
            Target(
                f"finding and writing the label takes less than {_MOST_COST:.0%} of the CPU time of series",
                f"{bone_s / built_s:.1%}: {bone_s:.3f} s of {built_s:.2f} ({min(shares):.1%} to {max(shares):.1%})",
                bool(bone_s < _MOST_COST * built_s),
            )
        ]
    )
    lines += [
        "| | |",
        "|---|--:|",
        f"| Dice with true bone | {np.mean(tally.dice):.3f} ({min(tally.dice):.3f} to {max(tally.dice):.3f}) |",
        f"| of voxels above {_BRIGHT_HU} HU beside vessel masks, left unlabelled | {np.mean(tally.left):.1%} |",
        f"| centres of aneurysms within the label | {inside} of {len(tally.centres)}{names and ': ' + names} |",
        "",
        "Share of the voxels of vessel masks that are labelled as bone:",
        "",
        f"| site | {' | '.join(f'+{added} HU' if added else 'as it is' for added in _ADDED_HU)} | voxels |",
        "|---|" + "--:|" * (len(_ADDED_HU) + 1),
    ]
    groups = {name: [site] for site, name in enumerate(SITES)}
    groups["**all but the infraclinoid carotids**"] = [i for i, name in enumerate(SITES) if "Infraclinoid" not in name]
    groups["**all**"] = list(range(len(SITES)))
    for name, sites in groups.items():
        total = tally.total[:, sites].sum(axis=1)
        lost = tally.lost[:, sites].sum(axis=1) / np.maximum(total, 1)
        lines.append(f"| {name} | {' | '.join(f'{share:.1%}' for share in lost)} | {total[0]:,} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=len(SITES))
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--repeats", type=int, default=3)
    add_usual_options(parser, "1 GB; 10 GB with --size full")
    options = parser.parse_args()
    limit_threads(1)
    data = work_folder(options) / f"bone-{options.size}-{options.series}"
    if not (data / "complete").exists():
        shutil.rmtree(data, ignore_errors=True)
        for index in range(options.series):
            print(f"drawing series {index + 1} of {options.series}", file=sys.stderr)
            write_series(plan(options.size, index), data)
        (data / "complete").touch()
    tally = Tally()
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        costs = measure_cost(data, Path(folder), options.repeats)
        for index in range(options.series):
            planned = plan(options.size, index)
            compare(CachedVolume(folder, planned.uid), planned, tally)
    about = machine() | {"command": f"`{command_line('benchmarks.bone')}`"}
    text = page(tally, costs, about, _TITLE if options.size == "small" else f"{_TITLE}: series of full size")
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
