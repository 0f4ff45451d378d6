"""`make bench`: seconds and peak memory of precaching one series, beside other tools and the floor.

Each run is a process of its own with one thread on one core. The contenders take turns (A B C A B C), so
that whatever else the machine does falls on all of them. Prints Markdown; `--write` puts it
into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contenders import CONTENDERS
from benchmarks.data import write_series
from benchmarks.options import add_usual_options, work_folder
from benchmarks.table import Target, machine, markdown, write_section

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "real"
FIRST_SERIES = "300 x 512 x 512 CT, uncompressed"
MEMORY_SERIES = "1000 x 512 x 512 CT, uncompressed"
GENERATED = {
    FIRST_SERIES: (300, "raw"),
    "300 x 512 x 512 CT, JPEG lossless": (300, "jpeg-lossless"),
    "300 x 512 x 512 CT, JPEG 2000": (300, "j2k"),
    MEMORY_SERIES: (1000, "raw"),
}
REAL_SERIES = (
    "ct-philips-tilt",
    "mr-t1-ge-oblique",
    "mr-t1-siemens-skyra-sag",
    "mr-t1-xa30-jpegll-fragmented",
    "mr-t1post-siemens-oblique",
    "mr-t1-xa30-enhanced",
)
TIMEOUT_S = 600


@dataclass
class Runs:
    """What one contender took on one series, a value per repeat; `error` if it could not."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    before_mb: list[float] = field(default_factory=list)
    out_mb: list[float] = field(default_factory=list)
    error: str = ""

    def add(self, result: dict[str, float]) -> None:
        """Note one more repeat."""
        for name, value in result.items():
            getattr(self, name).append(value)


def main() -> int:
    """Parse the options, time everything, print, and say with the exit code whether the aims are met."""
    options = _options()
    work = work_folder(options)
    series = {name: path for name, path in _series(work, options.real).items() if options.only in name}
    warm_up = _generated(work, 8, "raw")
    results = {name: _measure(name, path, warm_up, work, options) for name, path in series.items()}
    targets = _targets(results)
    text = markdown(results, targets, machine(), "python -m benchmarks.precache --write", options.repeats)
    print(text)
    if options.write:
        write_section(text)
    return 0 if all(target.met for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="series whose name has this in it")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--real", type=Path, default=REAL, help="folder with real series; may be absent")
    add_usual_options(parser, "1.5 GB")
    return parser.parse_args()


def _series(work: Path, real: Path) -> dict[str, Path]:
    series = {name: _generated(work, *what) for name, what in GENERATED.items()}
    for name in REAL_SERIES:
        if (real / name / "dicom").is_dir():
            series[name] = real / name / "dicom"
        elif (real / name / "dicom.tar.xz").is_file():
            series[name] = _unpacked(real / name / "dicom.tar.xz", work / name)
    return series


def _generated(work: Path, n_slices: int, syntax: str) -> Path:
    folder = work / f"{syntax}-{n_slices}"
    if not (folder / "complete").exists():
        print(f"writing {folder} ...", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        write_series(folder, n_slices, syntax)
        (folder / "complete").touch()
    return next((folder / "series").iterdir())


def _unpacked(archive: Path, folder: Path) -> Path:
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(folder)
    return folder


def _measure(name: str, series: Path, warm_up: Path, work: Path, options: argparse.Namespace) -> dict[str, Runs]:
    left_out = {key for key in CONTENDERS if CONTENDERS[key].heavy} if name in GENERATED else set()
    runs = {key: Runs() for key in options.contenders if name == FIRST_SERIES or key not in left_out}
    for repeat in range(options.repeats):
        for key, run in runs.items():
            # What can't read a series, or takes very long, is not tried again and again.
            if run.error or (len(run.seconds) >= 2 and run.seconds[0] > 5):
                continue
            print(f"{name}: {key}, run {repeat + 1} of {options.repeats}", file=sys.stderr)
            _run_once(key, run, series, warm_up, work)
    return runs


def _run_once(key: str, run: Runs, series: Path, warm_up: Path, work: Path) -> None:
    threads = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    )
    environment = os.environ | dict.fromkeys(threads, "1")
    with tempfile.TemporaryDirectory(dir=work) as out:
        command = [sys.executable, "-m", "benchmarks.contenders", key, str(series), str(warm_up), out]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                cwd=ROOT,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            run.error = f"more than {TIMEOUT_S} s"
            return
    if done.returncode:
        run.error = (done.stderr.strip().splitlines() or ["?"])[-1][:200]
    else:
        run.add(json.loads(done.stdout.splitlines()[-1]))


def _targets(results: dict[str, dict[str, Runs]]) -> list[Target]:
    """Judge the aims, by the least CPU time of the repeats: the clock of a busy machine tells of the others."""
    targets = []
    for name in GENERATED:
        runs = results.get(name, {})
        ours = runs.get("ours", Runs())
        if not ours.cpu_s:
            continue
        for key, run in runs.items():
            if key == "floor-decode" and run.cpu_s:
                ratio = min(ours.cpu_s) / min(run.cpu_s)
                targets.append(Target(f"{name}: at most 2x floor (e2)", f"{ratio:.2f}x", ratio <= 2))
            elif run.cpu_s and key.startswith(("scipy", "sitk", "monai")):
                ratio = min(run.cpu_s) / min(ours.cpu_s)
                aim = f"{name}: faster than {CONTENDERS[key].title}"
                targets.append(Target(aim, f"{ratio:.1f}x as fast", ratio > 1))
        if name == MEMORY_SERIES:
            peak_mb = max(ours.peak_mb)
            targets.append(Target(f"{name}: at most 400 MB peak", f"{peak_mb:.0f} MB", peak_mb <= 400))
    return targets


if __name__ == "__main__":
    sys.exit(main())
