"""`python -m benchmarks.phantom`: seconds and peak memory of making phantom series, and of the default data set.

Each series is made in a process of its own, on one core, and timed without imports. Prints Markdown. CPU seconds stand
beside wall seconds: on a machine that does other things only the first tell of the phantom.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODALITIES = ("CTA", "MRA", "MRI T2", "MRI T1post")
SITE = "Left Middle Cerebral Artery"


def time_series(modality: str, size: str, quirks: tuple[str, ...], slices_mm: float) -> dict[str, float | int]:
    """Make one series in this process; return its size, seconds and peak memory."""
    from aneurysm.phantom.plan import plan_series
    from aneurysm.phantom.series import write_series
    from aneurysm.processes.threads import limit_threads

    limit_threads(1)
    index = _index_with_gap(modality, size, quirks, slices_mm)
    with tempfile.TemporaryDirectory() as folder:
        # The first series pays for imports, of pydicom's plugins among them.
        write_series(plan_series(0, 0, modality=modality, size="tiny", quirks=quirks), Path(folder))
        plan = plan_series(0, index, modality=modality, size=size, sites=(SITE,), quirks=quirks)
        wall, cpu = time.perf_counter(), time.process_time()
        truth = write_series(plan, Path(folder)).truth
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "slices": truth.slices,
        "rows": truth.rows,
        "columns": truth.columns,
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_bytes": peak,
    }


def _index_with_gap(modality: str, size: str, quirks: tuple[str, ...], gap_mm: float) -> int:
    """Return the first series of seed 0 whose slices lie as far apart as asked, 0 if any will do."""
    from aneurysm.phantom.acquisition import _protocol
    from aneurysm.phantom.plan import plan_series

    for index in range(200):
        plan = plan_series(0, index, modality=modality, size=size, sites=(SITE,), quirks=quirks)
        if not gap_mm or abs(_protocol(plan, plan.streams("acquisition")).gap_mm - gap_mm) < 1e-6:
            return index
    raise SystemExit(f"no protocol of {modality} has slices {gap_mm:g} mm apart")


def time_dataset(series: int, size: str, workers: int) -> dict[str, float]:
    """Make a whole data set with the command; return wall and CPU seconds and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "data"
        command = [
            sys.executable,
            "-m",
            "aneurysm",
            "phantom",
            str(out),
            "--series",
            str(series),
            "--size",
            size,
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run([*command, "--workers", str(workers)], check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        size_bytes = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "bytes": size_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=4, metavar=("MODALITY", "SIZE", "QUIRKS", "GAP_MM"), help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.one:
        modality, size, quirks, gap = arguments.one
        print(json.dumps(time_series(modality, size, tuple(quirks.split()), float(gap))))
        return
    print("| series | matrix | wall s | CPU s | peak MB |\n|---|---|---|---|---|")
    cases = [(m, s, "", 0.0) for s in ("full", "small", "tiny") for m in MODALITIES]
    cases[0] = ("CTA", "full", "", 0.625)
    cases[1:1] = [("CTA", "full", quirk, 0.625) for quirk in ("jpeg_lossless", "jpeg_ls", "jpeg2000", "mask")]
    for modality, size, quirks, gap in cases:
        one = [sys.executable, "-m", "benchmarks.phantom", "--one", modality, size, quirks, str(gap)]
        run = subprocess.run(one, check=True, capture_output=True, text=True)
        r = json.loads(run.stdout)
        shape = f"{r['slices']} x {r['rows']} x {r['columns']}"
        name = f"{modality}, {size}" + (f", {quirks}" if quirks else "")
        print(f"| {name} | {shape} | {r['wall_s']:.1f} | {r['cpu_s']:.1f} | {r['peak_bytes'] / 1e6:.0f} |", flush=True)
    r = time_dataset(24, "small", arguments.workers)
    print(
        f"\n24 small series with {arguments.workers} workers: {r['wall_s']:.0f} s, {r['cpu_s']:.0f} s of CPU, ", end=""
    )
    print(f"{r['bytes'] / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
