"""Time and memory of all that is done with many series at once, at 5,000, 25,000 and 100,000 of them.

Real code on tiny series: what a plan, a scan, a manifest or a check costs goes by the number of series and files, not
by their size. Each step is a process of its own. Ten files a series: 100,000 series are a tree of a million files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.tables import write_tables
from aneurysm.precaching.partition import Shard
from aneurysm.precaching.plan import Plan, read_plan
from aneurysm.precaching.plan_folder import plan_folder
from aneurysm.precaching.run import precache
from aneurysm.precaching.status import RunWatch
from aneurysm.precaching.tasks import make_plan
from aneurysm.precaching.verify import verify
from aneurysm.rawdata.folder import find_series
from benchmarks.options import add_usual_options, work_folder
from benchmarks.table import Target, aims, command_line, machine, write_section
from benchmarks.tiny import SLICES, clone_volume, series_uid, write_ledgers, write_tiny_data

if TYPE_CHECKING:
    from aneurysm.precaching.build_series import Outcome
    from aneurysm.rawdata.folder import Inventory

_TASKS = 100
"""Parts of a plan."""
_ROOT = Path(__file__).parents[1]
_RUN = "scale"
_NOTES = """\
Wall time, the least of {repeats} runs; every step is a process of its own, imports not counted. CPU time and memory are
of that process, without workers; memory is the most that it had resident beyond what it had after its imports.
"Growth" is from the second largest number of series to the largest, {growth:g} is linear. Few series are cheaper each,
as long as what is known of them fits the processor's caches, which is no growth of the work.

- **scan, RSNA layout**: `find_series`, which lists `series/` and nothing below it.
- **scan, free tree**: `find_series` on the same files as if they were any tree: opens each file, for its header.
- **plan**: all that `precache` does into an empty cache before the first series: scan, tables, sizes, masks, jobs.
- **aneurysm plan**: the same, with a header of each series, dealt out to {parts} parts, and written.
- **a part of it**: all that `precache --plan` does before the first series: its part, and which of that is there.
- **resume**: `precache` into a finished cache: scan, plan, nothing to do, manifest.
- **merge**: `aneurysm manifest`: both tables derived from the volumes; **again**, with nothing changed since.
- **verify**: `aneurysm verify`, without `--deep`: metadata, digests, every file's hash, the manifest.
- **status**: `aneurysm status` of a run of 64 tasks that built all series: the ledgers, two lines a series.
"""


@dataclass(frozen=True)
class Found:
    """What a step took: wall and CPU time of its process, and memory beyond what that had at its start."""

    seconds: float
    cpu_s: float
    memory_mb: float


class _PlannedError(Exception):
    """The plan is made; raised so that nothing is built."""


class _StopsAtThePlan:
    def started(self, inventory: Inventory, todo: int, there: int, bytes_in: int) -> None:
        assert todo == len(inventory.sources), (todo, there)
        assert bytes_in > 0
        raise _PlannedError

    def finished(self, outcome: Outcome) -> None:
        raise AssertionError(outcome)


def _scan(work: Path) -> None:
    find_series(work / "data")


def _tree(workers: int) -> Callable[[Path], None]:
    def scan(work: Path) -> None:
        # Below series/ the same files are any tree: headers decide.
        found = find_series(work / "data" / "series", workers)
        assert found.layout == "tree"
        assert not found.ignored.counts, found.ignored

    return scan


def _plan(work: Path) -> None:
    with tempfile.TemporaryDirectory(dir=work) as empty:
        try:
            precache(work / "data", Path(empty) / "cache", progress=_StopsAtThePlan())
        except _PlannedError:
            return
    raise AssertionError("precache never said that it had started")


def _deal(work: Path) -> None:
    shutil.rmtree(work / "planned", ignore_errors=True)
    plan, _ = make_plan(work / "data", work / "planned", _TASKS)
    assert plan.document.missing == plan.document.series > 0


def _part(work: Path) -> None:
    plan = read_plan(plan_folder(work / "planned" / ".plan"))
    begin_task(plan, work / "data", work / "planned", Shard(7, _TASKS))


def begin_task(plan: Plan, data: Path, cache: Path, shard: Shard) -> None:
    """Do what a task of a plan does before its first series."""
    try:
        precache(data, cache, plan=plan, shard=shard, progress=_StopsAtThePlan())
    except _PlannedError:
        return
    raise AssertionError("precache never said that it had started")


def _resume(work: Path) -> None:
    summary = precache(work / "data", work / "cache")
    assert summary.cached == 0, summary
    assert summary.skipped == summary.total_cached > 0, summary


def _relabel(work: Path) -> None:
    train = work / "data" / "train.csv"
    header, *rows = train.read_text().splitlines()
    # All labels of all series are others than before.
    swap = str.maketrans("01", "10")
    changed = [f"{known},{labels.translate(swap)}" for known, labels in (_labels_apart(row) for row in rows)]
    train.write_text("\n".join([header, *changed]) + "\n")
    summary = precache(work / "data", work / "cache")
    assert summary.cached == 0, summary
    assert summary.updated == summary.total_cached > 0, summary


def _labels_apart(row: str) -> tuple[str, str]:
    cells = row.split(",")
    return ",".join(cells[:4]), ",".join(cells[4:])


def _merge(work: Path) -> None:
    write_tables(CacheLayout(work / "cache"), afresh=True)


def _merge_again(work: Path) -> None:
    write_tables(CacheLayout(work / "cache"))


def _verify(workers: int, shard: Shard | None = None) -> Callable[[Path], None]:
    def check(work: Path) -> None:
        report = verify(work / "cache", workers=workers, shard=shard)
        assert not report.faults, report.faults[:3]

    return check


def _status(work: Path) -> None:
    status = RunWatch(work / "cache", _RUN).look()
    assert status.is_complete, status
    assert status.total == status.done > 0


STEPS: dict[str, Callable[[Path], None]] = {
    "scan, RSNA layout": _scan,
    "scan, free tree, 1 worker": _tree(1),
    "scan, free tree, 2 workers": _tree(2),
    "plan": _plan,
    "aneurysm plan": _deal,
    "a part of it": _part,
    "merge": _merge,  # before resume and verify, which need the manifest
    "merge again": _merge_again,
    "resume": _resume,
    "relabel": _relabel,
    "status": _status,
    "verify, 1 worker": _verify(1),
    "verify, 2 workers": _verify(2),
    "verify, shard 0/16": _verify(1, Shard(0, 16)),
}

# Of every process that the scan starts: each opening of a file of the data, by the file's number.
_COUNT = """
import os, struct, sys
log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def count(event, args):
    if event == "open" and str(args[0]).endswith(".dcm"):
        series, file = str(args[0]).removesuffix(".dcm").split(".")[-2:]
        os.write(log, struct.pack("<I", (int(series) - {first}) * {slices} + int(file) - 100))
sys.addaudithook(count)
"""


def main() -> int:
    options = _options()
    work = work_folder(options) / "scale"
    if options.step:
        print(json.dumps(run_step(lambda: STEPS[options.step](work / str(options.series[0])))))
        return 0
    results = {}
    for series in options.series:
        _make(work / str(series), series)
        results[series] = {
            step: min((_measured(step, work / str(series), series) for _ in range(options.repeats)), key=_seconds)
            for step in STEPS
        }
    largest = max(options.series)
    opened = _openings(work / str(largest), largest)
    text = _section(results, options.repeats, opened, _files_in(work / str(largest) / "cache", largest))
    print(text)
    if options.write:
        write_section(text)
    if options.clean:
        for series in options.series:
            shutil.rmtree(work / str(series))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--series", type=int, nargs="+", default=[5_000, 25_000, 100_000], help="how many, smallest first"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--clean", action="store_true", help="remove the data afterwards: about 2.5 million files")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    add_usual_options(parser, "12 GB, in 2.5 million files")
    return parser.parse_args()


def _make(work: Path, series: int) -> None:
    if (work / "complete").exists():
        return
    print(f"writing {series} series and their volumes in {work} ...", file=sys.stderr)
    shutil.rmtree(work, ignore_errors=True)
    write_tiny_data(work / "data", series)
    precache(work / "data", work / "cache", series=[series_uid(0)])
    clone_volume(work / "cache", range(1, series))
    write_ledgers(work / "cache", _RUN, series)
    (work / "complete").touch()


def _measured(step: str, work: Path, series: int) -> Found:
    print(f"{series}: {step}", file=sys.stderr)
    done = subprocess.run(_command(step, work, series), stdout=subprocess.PIPE, check=True, cwd=_ROOT)
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def _command(step: str, work: Path, series: int) -> list[str]:
    arguments = ["--step", step, "--series", str(series), "--work", str(work.parents[1])]
    return [sys.executable, "-m", "benchmarks.scale", *arguments]


def run_step(step: Callable[[], None]) -> dict[str, float]:
    """Do a step, and return what it took, by the fields of `Found`."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: imports had one, too
    before_mb, started, cpu = _memory_mb("VmRSS"), time.perf_counter(), time.process_time()
    step()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "memory_mb": _memory_mb("VmHWM") - before_mb,
    }


def _memory_mb(kind: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024 / 1e6


def _openings(work: Path, series: int) -> np.ndarray:
    """Return how often a scan with two workers opens each file of the free tree."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        log = Path(folder) / "log"
        first = int(series_uid(0).rpartition(".")[2])
        (Path(folder) / "sitecustomize.py").write_text(_COUNT.format(log=str(log), first=first, slices=SLICES))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}
        command = _command("scan, free tree, 2 workers", work, series)
        subprocess.run(command, check=True, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL)
        return np.bincount(np.fromfile(log, "<u4"), minlength=series * SLICES)


def _files_in(cache: Path, series: int) -> tuple[int, int]:
    """Return the files and the folders of all volumes."""
    files = folders = 0
    for _, below, names in os.walk(cache / "volumes"):
        files, folders = files + len(names), folders + len(below)
    assert folders >= series
    return files, folders


def _section(results: dict[int, dict[str, Found]], repeats: int, opened: np.ndarray, in_cache: tuple[int, int]) -> str:
    sizes = sorted(results)
    large, before = sizes[-1], sizes[max(0, len(sizes) - 2)]
    about = machine(("numpy", "pydicom", "joblib", "pandas"))
    files, folders = in_cache
    targets = [
        Target(
            "a scan reads each header at most once", f"opened {opened.min()} to {opened.max()} times", _once(opened)
        ),
        *(_linear(step, results[before][step], results[large][step], large / before) for step in STEPS),
    ]
    lines = ["# Many series", "", *(f"- {key}: {value}" for key, value in about.items())]
    lines += [f"- command: `{command_line('benchmarks.scale')}`"]
    lines += [
        f"- {SLICES} files a series; in the cache {files / large:g} files and {folders / large:g} folders a volume"
    ]
    lines += ["", _NOTES.format(parts=_TASKS, growth=large / before, repeats=repeats), *aims(targets)]
    lines += [
        "| | " + " | ".join(f"{n:,} series: s | CPU s | MB | ms a series" for n in sizes) + " | growth: s | CPU s |",
        "|---|" + "--:|" * (4 * len(sizes) + 2),
    ]
    for step in STEPS:
        first, last = results[before][step], results[large][step]
        cells = []
        for n in sizes:
            found = results[n][step]
            cells += [f"{found.seconds:.2f}", f"{found.cpu_s:.2f}", f"{found.memory_mb:.0f}"]
            cells += [f"{found.seconds / n * 1e3:.3f}"]
        cells += [f"{last.seconds / first.seconds:.1f}x", f"{last.cpu_s / max(first.cpu_s, 1e-3):.1f}x"]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    one, two = (results[large][f"scan, free tree, {n}"].seconds for n in ("1 worker", "2 workers"))
    lines += ["", f"Two workers scan the free tree {one / two:.2f} times as fast as one."]
    return "\n".join(lines) + "\n"


def _seconds(found: Found) -> float:
    return found.seconds


def _once(opened: np.ndarray) -> bool:
    return bool((opened == 1).all())


def _linear(step: str, first: Found, last: Found, linear: float) -> Target:
    # A quarter more: names are sorted, and what is larger fits less well into the processor's caches. A MB is within
    # chance.
    time, memory = last.seconds / max(first.seconds, 1e-3), last.memory_mb / max(first.memory_mb, 1.0)
    met = max(time, memory) <= 1.25 * linear
    return Target(
        f"{step}: {linear:g} times the series, no more time and memory each",
        f"time {time:.1f}x, memory {memory:.1f}x",
        met,
    )


if __name__ == "__main__":
    sys.exit(main())
