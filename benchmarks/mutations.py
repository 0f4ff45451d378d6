"""Thousands of damaged copies of real series through the library: what each comes to, and what it takes.

Each copy is a small series. Some hundred lie in one data folder, which is precached, within limits, by a process that
calls the library as a program would. That process must live, and say what came of each series; the processes that it
starts are watched while they work.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.manifest import read_manifest
from aneurysm.errors import CacheError, Reason
from benchmarks.mutants import Files, mutate, mutate_mask
from benchmarks.options import add_usual_options, work_folder
from benchmarks.table import Target, aims, command_line, machine, write_section

_ROOT = Path(__file__).parents[1]
_UID = "1.2.826.0.1.3680043.8.498.77"
_WORKERS, _MEMORY_MB, _TIMEOUT_S = 2, 600, 60
_SLICES, _LARGEST = 6, 1_500_000
"""A copy has so many files of its series; larger files are left out."""
_IN_TREES, _WITH_MASK = 0.2, 0.1
"""Shares of folders that are no RSNA layout, and of series with a damaged mask."""
_CALL = (
    "import sys; from aneurysm.precaching.run import precache; "
    f"precache(sys.argv[1], sys.argv[2], workers={_WORKERS}, timeout_s={_TIMEOUT_S}, memory_mb={_MEMORY_MB})"
)
_NOTES = f"""\
Copies of {_SLICES} files at most of each real series at hand, in every transfer syntax that there is: bits flipped,
cut, overwritten, swapped; elements with absurd values, VRs and lengths; sequences without end; streams of JPEG,
JPEG-LS, JPEG 2000 and RLE whose headers lie; fragments by the hundred thousand; data sets that inflate to 300 MB more;
one copy in {1 / _WITH_MASK:.0f} has a damaged vessel mask. They are precached by `precache(workers={_WORKERS},
timeout_s={_TIMEOUT_S}, memory_mb={_MEMORY_MB})`, in the RSNA layout and, one folder in {1 / _IN_TREES:.0f}, any tree.
Faults are: a calling process that ends other than by itself, a traceback, `internal_error`, `timed_out`, a series
without a row, and a process that had more resident than the limit and a tenth.
"""


@dataclass
class Found:
    """What came of the copies, and what was wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    most_mb: float = 0.0


class Watch:
    """Looks every few milliseconds at the processes below one, for the most that each has had resident."""

    def __init__(self, pid: int) -> None:
        self.most_mb = 0.0
        self._process, self._ended = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the most, in 10^6 bytes."""
        self._ended.set()
        self._thread.join()
        return self.most_mb

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            with suppress(psutil.Error, OSError, ValueError, IndexError):
                for child in self._process.children():
                    # Another one's, until it is this program: a fork of the caller.
                    if "aneurysm.processes.child_main" not in Path(f"/proc/{child.pid}/cmdline").read_text():
                        continue
                    status = Path(f"/proc/{child.pid}/status").read_text()
                    self.most_mb = max(self.most_mb, int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6)


def real_series(root: Path, work: Path) -> dict[str, Files]:
    """Return the first files of each folder of real DICOM files below ``root``, by its name."""
    found: dict[str, Files] = {}
    for archive in sorted(root.rglob("dicom.tar.xz")):
        folder = work / "unpacked" / archive.parent.name
        if not folder.exists():
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    for base in (root, work / "unpacked"):
        for folder in sorted({p.parent for p in base.rglob("*") if p.is_file() and p.suffix in (".dcm", "")}):
            files = [p for p in sorted(folder.iterdir()) if p.is_file() and _is_dicom(p)]
            files = [p for p in files if p.stat().st_size <= _LARGEST]
            if files:
                # Those next to each other by name: most of a series' slices are.
                found[folder.relative_to(base).as_posix()] = [p.read_bytes() for p in files[:_SLICES]]
    return found


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"


def try_copies(
    sources: dict[str, Files], masks: list[bytes], copies: int, size: int, seed: int, work: Path
) -> Iterator[Found]:
    """Yield what came of each folder of ``size`` copies; ``copies`` of them in all."""
    for first in range(0, copies, size):
        rng = random.Random(f"{seed}.{first}")
        box = work / "box"
        shutil.rmtree(box, ignore_errors=True)
        tree = rng.random() < _IN_TREES
        stories = _write(box / "data", sources, masks, min(size, copies - first), rng, tree=tree)
        yield _precache(box, stories, tree=tree)


def _write(
    data: Path, sources: dict[str, Files], masks: list[bytes], count: int, rng: random.Random, *, tree: bool
) -> dict[str, str]:
    stories = {}
    for number in range(count):
        name, uid = rng.choice(sorted(sources)), f"{_UID}.{number}"
        mutant = mutate(sources[name], rng)
        stories[uid] = f"{name}: {mutant.story}"
        folder = data / (f"{number % 7}/{number}" if tree else f"series/{uid}")
        folder.mkdir(parents=True)
        for i, content in enumerate(mutant.files):
            (folder / f"{i}.dcm").write_bytes(content)
        if masks and not tree and rng.random() < _WITH_MASK:
            (data / "segmentations").mkdir(exist_ok=True)
            mask, story = mutate_mask(rng.choice(masks), rng)
            (data / "segmentations" / f"{uid}_cowseg.nii.gz").write_bytes(mask)
            stories[uid] += f"; {story}"
    return stories


def _precache(box: Path, stories: dict[str, str], *, tree: bool) -> Found:
    found = Found()
    with (box / "log").open("wb") as log:
        run = subprocess.Popen(
            [sys.executable, "-c", _CALL, str(box / "data"), str(box / "cache")], cwd=_ROOT, stdout=log, stderr=log
        )
        watch = Watch(run.pid)
        try:
            run.wait(60 + 2 * _TIMEOUT_S * len(stories))
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            found.faults.append("a run did not come to its end")
    found.most_mb = watch.stop()
    text = (box / "log").read_text(errors="replace")
    if run.returncode or "Traceback" in text:
        found.faults.append(f"the calling process ended with {run.returncode}: ...{text[-500:]}")
    if found.most_mb > 1.1 * _MEMORY_MB:
        found.faults.append(f"a process had {found.most_mb:.0f} MB")
    try:
        rows = {row["series_uid"]: row for row in read_manifest(CacheLayout(box / "cache").manifest)}
    except CacheError as error:
        rows = {}
        found.faults.append(str(error))
    for uid, row in rows.items():
        found.outcomes[row["reason"] or row["status"]] += 1
        found.slowest_s = max(found.slowest_s, float(row["seconds"] or 0))
        if row["reason"] in (Reason.INTERNAL_ERROR, Reason.TIMED_OUT):
            found.faults.append(f"{row['reason']}: {row['detail']} ({stories.get(uid, 'split off')})")
    if not tree and stories.keys() - rows.keys():
        found.faults.append(f"{len(stories.keys() - rows.keys())} series without a row")
    return found


def main() -> int:
    options = _options()
    work = work_folder(options) / "mutations"
    work.mkdir(parents=True, exist_ok=True)
    sources = real_series(options.real.absolute(), work)
    if not sources:
        print(f"no DICOM files below {options.real}")
        return 2
    masks = [p.read_bytes() for p in sorted(options.real.rglob("*ground_truth.nii.gz"))]
    began, total = time.monotonic(), Found()
    for number, found in enumerate(try_copies(sources, masks, options.copies, options.size, options.seed, work), 1):
        total.outcomes += found.outcomes
        total.faults += found.faults
        total.slowest_s = max(total.slowest_s, found.slowest_s)
        total.most_mb = max(total.most_mb, found.most_mb)
        done = min(options.copies, number * options.size)
        print(f"{done} copies, {time.monotonic() - began:.0f} s, {len(total.faults)} faults", flush=True)
        for fault in found.faults:
            print(f"    {fault}", flush=True)
        if found.faults:
            shutil.copytree(work / "box", work / f"faults-{options.seed}-{number}", dirs_exist_ok=True)
    text = _section(total, len(sources), time.monotonic() - began, options)
    print(text)
    if options.write:
        write_section(text)
    return 1 if total.faults else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=5000)
    parser.add_argument("--size", type=int, default=250, help="copies in one data folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--real", type=Path, default=_ROOT.parent / "shared" / "data" / "real", help="folder of real series"
    )
    add_usual_options(parser, "2 GB")
    return parser.parse_args()


def _section(total: Found, sources: int, seconds: float, options: argparse.Namespace) -> str:
    lines = ["# Damaged copies of real series", ""]
    packages = ("pydicom", "python-gdcm", "pylibjpeg-openjpeg", "pyjpegls", "imagecodecs", "SimpleITK")
    lines += [f"- {key}: {value}" for key, value in machine(packages).items()]
    lines += [f"- {options.copies} copies of {sources} series, in {seconds:.0f} s"]
    lines += [f"- command: `{command_line('benchmarks.mutations')}`"]
    most = f"{total.most_mb:.0f} MB"
    faults = f"{len(total.faults)}: {total.faults[:3]}" if total.faults else "none"
    lines += [
        "",
        _NOTES,
        *aims(
            [
                Target("no fault found", faults, not total.faults),
                Target(f"no process above {1.1 * _MEMORY_MB:.0f} MB", most, total.most_mb <= 1.1 * _MEMORY_MB),
                Target(f"no series above {_TIMEOUT_S} s", f"{total.slowest_s:.1f} s", total.slowest_s <= _TIMEOUT_S),
            ]
        ),
        "| outcome | series |",
        "|---|--:|",
        *(f"| {reason} | {number} |" for reason, number in total.outcomes.most_common()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
