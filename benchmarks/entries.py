"""Time and memory of what looks at names, tables and metadata alone, at 5,000, 100,000 and 1,000,000 series.

Volumes are generated: folders of their own, with links to the metadata of one tiny volume that was really built, and no
voxels. So a million of them fit on a disk, and cost what real ones cost as long as nobody reads a shard. What scans
data and what reads shards is in `benchmarks.scale`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from aneurysm.cache.folder import done_series
from aneurysm.cache.layout import SUBFOLDERS, CacheLayout, subfolder_of
from aneurysm.cache.table_parts import Entry, read_part, write_part
from aneurysm.cache.tables import merge_parts, write_tables
from aneurysm.labels import LABELS, SITES
from aneurysm.precaching.partition import Shard
from aneurysm.precaching.plan import read_plan
from aneurysm.precaching.plan_folder import plan_folder
from aneurysm.precaching.run import precache
from aneurysm.precaching.status import RunWatch
from aneurysm.precaching.tasks import make_plan
from aneurysm.precaching.verify import check_tables_alone
from benchmarks.options import add_usual_options, work_folder
from benchmarks.scale import Found, begin_task, run_step
from benchmarks.table import Target, aims, command_line, machine, write_section
from benchmarks.tiny import series_uid, write_ledgers, write_tiny_data

_ROOT = Path(__file__).parents[1]
_PART = 5_000
_LINKS = 50_000
"""To one file: ext4 allows 65,000."""
_EACH = 100
_PARTS_ALONE = "merge, parts alone"
_WITHOUT_VOLUMES = (_PARTS_ALONE, "plan", "a task of it", "status")
_LOCALIZED = 2
"""Every second series has a lesion, as in the RSNA set 2,254 rows are of 4,348 series."""
_TASKS = 100
_RUN = "entries"
_MOST_GB = 4
_TEN_MILLION = 10_000_000
_NOTES = """\
Wall time of one run (on a machine whose load is above its number of cores CPU time alone says something); every step is
a process of its own, imports not counted. Memory is the most that it had resident
beyond what it had after its imports. Volumes are generated: folders of their own with links to the metadata of one tiny
volume, without voxels, all in the page cache. "At 10 million" is calculated: the largest number's memory, and its
growth from the number before for each series more.

- **list**: which series are done, as each `precache` asks.
- **merge, first**: `aneurysm manifest` of a cache that has no tables: each volume's metadata are read. How long series
  took no task had left here; that would be some 0.25 KB in memory for each series, 2.5 GB for 10 million.
- **merge again**: nothing changed since.
- **merge, 1 % changed**: so many volumes have another zarr.json.
- **merge, parts alone**: of `merge again` what writes both tables from the parts, which were generated and are of no
  volumes.
- **verify, tables**: what `aneurysm verify` does with manifest.csv, lesions.csv and the parts, besides reading volumes.
- **verify, tables, shard 0/16**: the same of one of 16 parts, of which the tables are read as a whole.
- **resume**: `aneurysm precache` when all is done: data, tables, each volume's labels, and `merge again`.
- **plan**: `aneurysm plan` of data in the RSNA layout, for each series a folder with a link to one tiny DICOM file
  and a row of train.csv, for every second one a row of train_localizers.csv; into an empty cache, for {tasks} tasks,
  with one worker.
- **a task of it**: all that `aneurysm precache --plan` does before its first series.
- **status**: `aneurysm status` of a run of 64 tasks that built all series: the ledgers, two lines a series.
"""


def _list(layout: CacheLayout) -> None:
    assert done_series(layout)


def _merge(layout: CacheLayout) -> None:
    assert write_tables(layout).cached > 0


def _tables(shards: int) -> Callable[[CacheLayout], None]:
    def check(layout: CacheLayout) -> None:
        faults = check_tables_alone(layout, SUBFOLDERS[::shards])
        assert not faults, faults[:3]

    return check


def _forget(layout: CacheLayout) -> None:
    shutil.rmtree(layout.tables, ignore_errors=True)
    for table in (layout.manifest, layout.lesions):
        table.unlink(missing_ok=True)


def _change_some(layout: CacheLayout) -> None:
    for number in range(_EACH, len(done_series(layout)), _EACH):
        path = layout.volume(series_uid(number)) / "zarr.json"
        copy = path.with_name("copy")
        shutil.copyfile(path, copy)
        copy.replace(path)
    time.sleep(3)  # what was changed just now would be read again at the next merge, too


def _make_parts(layout: CacheLayout) -> None:
    """Give as many entries as there are volumes, of the first one's, to a cache beside."""
    beside = _beside(layout)
    if not beside.tables.is_dir():
        uid = series_uid(0)
        if not layout.table_part(subfolder_of(uid)).exists():
            write_tables(layout)
        beside.tables.mkdir(parents=True)
        entries = read_part(layout.table_part(subfolder_of(uid)))
        assert entries is not None
        by_subfolder: dict[str, list[Entry]] = {name: [] for name in SUBFOLDERS}
        for number in range(int(layout.root.parent.name)):
            cells = [series_uid(number), *entries[uid].cells[1:]]
            by_subfolder[subfolder_of(cells[0])].append(entries[uid]._replace(cells=cells))
        for name, found in by_subfolder.items():
            write_part(beside.table_part(name), found)


def _beside(layout: CacheLayout) -> CacheLayout:
    return CacheLayout(layout.root.with_name("parts"))


def _merge_parts(layout: CacheLayout) -> None:
    assert merge_parts(_beside(layout)).cached == int(layout.root.parent.name)


def _data(layout: CacheLayout) -> Path:
    return layout.root.with_name("links")


def _planned(layout: CacheLayout) -> CacheLayout:
    return CacheLayout(layout.root.with_name("planned"))


def _make_data(layout: CacheLayout) -> None:
    """Write as many series of one file each, and their tables; forget a plan that there is."""
    data = _data(layout)
    shutil.rmtree(_planned(layout).root, ignore_errors=True)
    if (data / "train.csv").exists():
        return
    shutil.rmtree(data, ignore_errors=True)
    (data / "series").mkdir(parents=True)
    file = min((data.with_name("data") / "series" / series_uid(0)).iterdir())
    with (
        (data / "train.part").open("w", newline="") as train,
        (data / "train_localizers.csv").open("w", newline="") as localizers,
    ):
        labels, points = csv.writer(train), csv.writer(localizers)
        labels.writerow(["SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS])
        points.writerow(["SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location"])
        for number in range(int(data.parent.name)):
            if number % _LINKS == 0:
                source = shutil.copy(file, data.parent / f"{number}.dcm")
            uid = series_uid(number)
            os.mkdir(f"{data}/series/{uid}")  # noqa: PTH102 - as above
            os.link(source, f"{data}/series/{uid}/1.dcm")
            labels.writerow([uid, 60, "F", "CTA", *[0] * len(LABELS)])
            if number % _LOCALIZED == 0:
                point = {"x": 100 + number / 7, "y": 200 + number / 11}
                points.writerow([uid, f"{uid}.100", point, SITES[number % len(SITES)]])
    (data / "train.part").rename(data / "train.csv")


def _make_labelled(layout: CacheLayout) -> None:
    """Give the same series without their lesions, which no volume has, to a folder beside."""
    _make_data(layout)
    labelled = _labelled(layout)
    shutil.rmtree(labelled, ignore_errors=True)
    labelled.mkdir()
    for name in ("series", "train.csv"):
        (labelled / name).symlink_to(_data(layout) / name)


def _labelled(layout: CacheLayout) -> Path:
    return layout.root.with_name("labelled")


def _resume(layout: CacheLayout) -> None:
    summary = precache(_labelled(layout), layout.root)
    assert summary.cached == summary.updated == 0, summary
    assert summary.skipped == summary.total_cached == int(layout.root.parent.name), summary


def _plan(layout: CacheLayout) -> None:
    plan, _ = make_plan(_data(layout), _planned(layout).root, _TASKS)
    assert plan.document.missing == int(layout.root.parent.name)


def _part(layout: CacheLayout) -> None:
    plan = read_plan(plan_folder(_planned(layout).plan))
    begin_task(plan, _data(layout), _planned(layout).root, Shard(7, _TASKS))


def _make_ledgers(layout: CacheLayout) -> None:
    watched = CacheLayout(layout.root.with_name("watched"))
    if not watched.spec.exists():
        shutil.rmtree(watched.root, ignore_errors=True)
        write_ledgers(watched.root, _RUN, int(layout.root.parent.name))
        shutil.copy(layout.spec, watched.spec)


def _status(layout: CacheLayout) -> None:
    status = RunWatch(layout.root.with_name("watched"), _RUN).look()
    assert status.is_complete, status
    assert status.total == status.done == int(layout.root.parent.name)


STEPS: dict[str, tuple[Callable[[CacheLayout], None], Callable[[CacheLayout], None]]] = {
    "list": (lambda _: None, _list),
    "merge, first": (_forget, _merge),
    "merge again": (lambda _: None, _merge),
    "merge, 1 % changed": (_change_some, _merge),
    _PARTS_ALONE: (_make_parts, _merge_parts),
    "verify, tables": (lambda _: None, _tables(1)),
    "verify, tables, shard 0/16": (lambda _: None, _tables(16)),
    "resume": (_make_labelled, _resume),
    "plan": (_make_data, _plan),
    "a task of it": (lambda _: None, _part),
    "status": (_make_ledgers, _status),
}
"""What is done before, and what is measured."""


def main() -> int:
    options = _options()
    work = work_folder(options) / "entries"
    if options.step:
        layout = CacheLayout(work / str(options.series[0]) / "cache")
        print(json.dumps(run_step(lambda: STEPS[options.step][1](layout))))
        return 0
    results: dict[int, dict[str, Found]] = {}
    for series in sorted({*options.series, *options.parts}):
        # For what looks at no volumes one will do.
        layout = _made(work / str(series), series if series in options.series else 1)
        known = work / str(series) / "results.json"
        results[series] = {k: Found(**v) for k, v in json.loads(known.read_text()).items()} if known.exists() else {}
        for step, (prepare, _) in STEPS.items():
            if step not in results[series] and (series in options.series or step in _WITHOUT_VOLUMES):
                prepare(layout)
                results[series][step] = _measured(step, work, series)
                known.write_text(json.dumps({k: asdict(v) for k, v in results[series].items()}))
                print(f"{series}: {step}: {results[series][step]}", file=sys.stderr, flush=True)
    text = _section(results)
    print(text)
    if options.write:
        write_section(text)
    if options.clean:
        shutil.rmtree(work)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--series", type=int, nargs="*", default=[5_000, 100_000, 1_000_000], help="how many volumes, two folders each"
    )
    parser.add_argument(
        "--parts",
        type=int,
        nargs="*",
        default=[],
        help="how many, for steps that look at no volumes",
    )
    parser.add_argument("--clean", action="store_true", help="remove the caches afterwards: two folders a series")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    add_usual_options(parser, "12 GB, in 2.2 million folders")
    return parser.parse_args()


def _made(work: Path, series: int) -> CacheLayout:
    layout = CacheLayout(work / "cache")
    if not (work / "complete").exists():
        print(f"making {series} volumes in {work} ...", file=sys.stderr, flush=True)
        shutil.rmtree(work, ignore_errors=True)
        write_tiny_data(work / "data", 1)
        precache(work / "data", work / "cache", workers=0)
        for table in (layout.tables, layout.root / ".runs"):
            shutil.rmtree(table, ignore_errors=True)
        for name in SUBFOLDERS:
            (layout.volumes / name).mkdir(exist_ok=True)
        parts = [range(i, min(i + _PART, series)) for i in range(1, series, _PART)]
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(_link, work), parts))
        time.sleep(3)  # see _change_some
        (work / "complete").touch()
    return layout


def _link(work: Path, numbers: range) -> None:
    layout = CacheLayout(work / "cache")
    source = work / "sources" / str(numbers.start // _LINKS)
    if not source.exists():
        own = source.with_name(f"{source.name}.{os.getpid()}")
        shutil.copytree(layout.volume(series_uid(0)), own)
        try:
            own.rename(source)
        except OSError:  # another process was faster
            shutil.rmtree(own)
    for number in numbers:
        folder = str(layout.volume(series_uid(number)))
        os.makedirs(f"{folder}/0")  # noqa: PTH103 - a million of them: Path objects would take most of the time
        # What is to change has a file of its own: to remove one of several links is a change of all of them.
        (os.link if number % _EACH else shutil.copyfile)(f"{source}/zarr.json", f"{folder}/zarr.json")
        os.link(f"{source}/0/zarr.json", f"{folder}/0/zarr.json")


def _measured(step: str, work: Path, series: int) -> Found:
    arguments = ["--step", step, "--series", str(series), "--work", str(work.parent)]
    command = [sys.executable, "-m", "benchmarks.entries", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=_ROOT)
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def _section(results: dict[int, dict[str, Found]]) -> str:
    sizes = sorted(results)
    lines = ["# Many entries", "", *(f"- {key}: {value}" for key, value in machine(("numpy", "pydantic")).items())]
    lines += [f"- command: `{command_line('benchmarks.entries')}`", "", _NOTES.format(tasks=_TASKS)]
    of_step = {step: at for step in STEPS if (at := [n for n in sizes if step in results[n]])}
    ends = {step: (at[max(0, len(at) - 2)], at[-1]) for step, at in of_step.items()}
    expected = {
        step: _gigabytes(results[before][step], before, results[large][step], large)
        for step, (before, large) in ends.items()
    }
    targets = [
        Target(f"{step}: below {_MOST_GB} GB at 10 million", f"{gb:.1f} GB", gb < _MOST_GB)
        for step, gb in expected.items()
    ]
    lines += aims(targets)
    lines += [
        "| | "
        + " | ".join(f"{n:,} series: s | CPU s | MB" for n in sizes)
        + " | growth: s | CPU s | GB at 10 million |",
        "|---|" + "--:|" * (3 * len(sizes) + 3),
    ]
    for step in of_step:
        each = [results[n].get(step) for n in sizes]
        cells = [f"{f.seconds:.2f} | {f.cpu_s:.2f} | {f.memory_mb:.0f}" if f else "not run | | " for f in each]
        before, large = ends[step]
        growth = [results[large][step].seconds / results[before][step].seconds]
        growth += [results[large][step].cpu_s / max(results[before][step].cpu_s, 1e-3)]
        cells += [*(f"{g:.1f}x" for g in growth), f"{expected[step]:.1f}"]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gigabytes(first: Found, n_first: int, last: Found, n_last: int) -> float:
    """Return the memory at ten million series, by what the last ones added; of one size, by what each takes."""
    slope = (last.memory_mb - first.memory_mb) / (n_last - n_first) if n_last > n_first else last.memory_mb / n_last
    return (last.memory_mb + max(slope, 0.0) * (_TEN_MILLION - n_last)) / 1e3


if __name__ == "__main__":
    sys.exit(main())
