"""What a series costs, and what a second worker brings: measured on generated series of full size."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aneurysm.cache.folder import prepare_cache
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.manifest import read_manifest
from aneurysm.precaching.build_series import SeriesJob, build_series
from aneurysm.precaching.run import precache
from aneurysm.rawdata.folder import find_series
from aneurysm.rawdata.tables import SeriesNotes
from aneurysm.spec import load_spec
from benchmarks.data import SYNTAXES, write_series
from benchmarks.makespan import Costs

if TYPE_CHECKING:
    from aneurysm.precaching.build_series import Outcome
    from aneurysm.rawdata.folder import Inventory

ALONE = (
    ("raw", 40), ("raw", 120), ("raw", 240), ("raw", 400),
    ("jpeg-ls", 120), ("jpeg-ls", 240), ("j2k", 40), ("j2k", 120),
)  # fmt: skip
TOGETHER = tuple(("raw", n) for n in (100, 130, 160, 190, 220, 250, 280, 310, 340, 370))
SLICE_MB = 512 * 512 * 2 / 1e6
_ROOT = Path(__file__).parents[1]

Measured = dict[tuple[str, int], tuple[float, float]]
"""CPU and wall seconds by syntax and slices."""


class _Watch:
    """Notes when the plan was ready and when the last series was."""

    def __init__(self) -> None:
        self.started_s = self.last_s = 0.0

    def started(self, inventory: Inventory, todo: int, there: int, bytes_in: int) -> None:  # noqa: ARG002
        self.started_s = time.perf_counter()

    def finished(self, outcome: Outcome) -> None:
        assert outcome.status == "cached", outcome
        self.last_s = time.perf_counter()


@dataclass(frozen=True)
class Run:
    """One run of precache: seconds altogether, before and after the workers, and of the parent's CPU."""

    seconds: float
    outside_s: float
    parent_cpu_s: float
    built_s: float


def _data(work: Path, series: tuple[tuple[str, int], ...]) -> Path:
    folder = work / f"makespan-{len(series)}"
    if not (folder / "complete").exists():
        print(f"writing {folder} ...", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        for syntax, slices in series:
            write_series(folder, slices, syntax)
        (folder / "complete").touch()
    return folder


def measured_costs(work: Path, repeats: int) -> Measured:
    """Return the least CPU time and wall time of each series."""
    sources = {s.uid: s for s in find_series(_data(work, ALONE)).sources}
    spec = load_spec("rsna-1mm")
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        prepare_cache(CacheLayout(Path(folder)), spec)
        for _ in range(repeats + 1):  # the first warms up
            for syntax, slices in ALONE:
                ending = f".{slices}.{list(SYNTAXES).index(syntax) + 1}"
                (uid,) = (uid for uid in sources if uid.endswith(ending))
                job = SeriesJob(sources[uid], SeriesNotes(), None, Path(folder), spec, b"", overwrite=True)
                cpu, wall = time.process_time(), time.perf_counter()
                outcome = build_series(job)
                took = time.process_time() - cpu, time.perf_counter() - wall
                assert outcome.status == "cached", outcome
                found.setdefault((syntax, slices), []).append(took)
    return {key: (min(c for c, _ in runs[1:]), min(w for _, w in runs[1:])) for key, runs in found.items()}


def fitted_costs(measured: Measured) -> tuple[Costs, float]:
    """Return the costs that fit best, and the largest error as a share."""
    rows, cpu = [], []
    for (syntax, slices), (cpu_s, _) in measured.items():
        mb = slices * SLICE_MB
        rows.append([1.0, mb, mb * (syntax == "jpeg-ls"), mb * (syntax == "j2k")])
        cpu.append(cpu_s)
    matrix, seconds = np.array(rows), np.array(cpu)
    # Errors count as shares: a second more matters to a small series, not to a large one.
    (series_s, mb_s, jpeg_ls, j2k), *_ = np.linalg.lstsq(matrix / seconds[:, None], np.ones(len(seconds)), rcond=None)
    error = np.abs(matrix @ [series_s, mb_s, jpeg_ls, j2k] / seconds - 1).max()
    return Costs(float(series_s), float(mb_s), float(jpeg_ls + j2k) / 2), float(error)


def best_runs(work: Path, repeats: int) -> dict[int, Run]:
    """Return the fastest run of 1 and of 2 workers, which take turns: what else runs on the machine hits both."""
    data = _data(work, TOGETHER)
    runs: dict[int, list[Run]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, of_workers in runs.items():
            command = [sys.executable, "-m", "benchmarks.precache_costs", str(data), str(workers)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=_ROOT)
            of_workers.append(Run(**json.loads(done.stdout.splitlines()[-1])))
    return {workers: min(of_workers, key=lambda r: r.seconds) for workers, of_workers in runs.items()}


def _precached(data: Path, workers: int) -> dict[str, float]:
    """Build the series of ``data`` by so many workers, each in a process of its own."""
    watch = _Watch()
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        cpu, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        precache(data, Path(folder) / "cache", workers=workers, progress=watch)
        ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        rows = read_manifest(Path(folder) / "cache" / "manifest.csv")
    return {
        "seconds": ended - begun,
        "outside_s": watch.started_s - begun + ended - watch.last_s,
        "parent_cpu_s": after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime,
        "built_s": sum(float(row["seconds"]) for row in rows),
    }


def main() -> None:
    """Run precache once, in this process and its children; for `best_runs`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("workers", type=int)
    options = parser.parse_args()
    print(json.dumps(_precached(options.data, options.workers)))


if __name__ == "__main__":
    main()
