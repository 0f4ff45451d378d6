"""How long the whole RSNA set takes on 1 to 256 workers: costs measured here, the rest simulated.

Also, measured: what a second worker brings on this machine, and how much of a run goes by outside the workers.
"""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np

from aneurysm.precaching.partition import deal
from benchmarks.makespan import RATIO, Costs, Job, least, makespan, rsna_jobs
from benchmarks.options import add_usual_options, work_folder
from benchmarks.precache_costs import SLICE_MB, TOGETHER, Measured, Run, best_runs, fitted_costs, measured_costs
from benchmarks.table import command_line, machine, write_section

_WORKERS = (1, 8, 32, 256)
_BANDWIDTHS = (1e9, 2e9, 4e9)
_PARTS = ((2, 4), (4, 4), (8, 4), (32, 1), (32, 8), (256, 1))
"""Tasks of an array, and workers of each."""
_ESTIMATE_SPREAD = 0.2
"""Of the logarithm of expected by real seconds."""
_PARTS_BANDWIDTH = 2e9
_NOTES = """\
**The set.** 4,348 series, a million frames, 556 GB decoded, 311 GB stored. Frames are drawn by modality (log-normal,
seed {seed}): 1,808 CTA of 331 in the middle and 1,441 at most, 62 of them 1,024 pixels wide; 1,252 MRA of 160, 983 T2
of 32, 305 T1post of 176, scaled so that all frames come to the million. Known are the sums, the counts, and what is
said of CTA; assumed are the frames of MR, the spreads, and that compressed series shrink {ratio:g} times, which makes
them {packed:.0%} of all.

**The costs.** CPU time of `build_series`, files in the page cache, least of {repeats} runs, fitted: {series_s:.2f} s
a series, {mb_s:.2f} ms for 10^6 decoded bytes, {decode_mb_s:.2f} ms more for as many if they are compressed (half of
them JPEG-LS, half JPEG 2000). The fit is off by {error:.0%} at most.

**The machine.** Every worker has a core like this machine's for itself. A worker reads a series, then computes; those
who read share the storage evenly, and one alone has all of it. What is written is a small part of what is read and is
not counted, nor is the time outside the workers.

**The ideal** is what no order can beat: all computing and reading over the workers, all bytes over the bandwidth, or
the series that takes longest.
"""
_ORDERS_NOTES = """\
One queue for all workers, as on one machine or with Dask: minutes, and how far beyond the ideal. `precache` takes the
largest first, by stored bytes; "longest first" would have to know how long a series takes, compression and all.
"""
_PARTS_NOTES = """\
The set and the machines of the section above, dealt out to the tasks of an array, storage of {bandwidth:g} GB/s:
minutes until the last is done. "By bytes" is what tasks do that can't agree on a plan, "by seconds" what a plan does,
or the tasks of one array: expected seconds, computing and reading, are off by {spread:.0%} (log-normal) in each series.
"Stealing": a task that is done takes the next series of others, the longest first. Within a task the largest, or the
longest, comes first. "Max by mean" is about the seconds of one core that the tasks have to do: those of the task that
has most, by the mean of all.
"""
_RUNS_NOTES = """\
`precache` of {series} series of {least} to {most} slices, {gb:.1f} GB, by processes beside the one that plans:
"""
_SHARES_NOTES = """\
"Outside the workers" is the time before the plan was ready and after the last series was done. A series takes
{slower:.2f} times as long while another is built beside it: caches, memory and disk are shared, and other things were
running. {at_best:.2f} is the speed-up that this leaves at best."""


def main() -> int:
    options = _options()
    work = work_folder(options)
    if options.costs:
        series_s, mb_ms, decode_mb_ms = options.costs
        sections = [_parts_section(Costs(series_s, mb_ms / 1e3, decode_mb_ms / 1e3), options)]
    else:
        measured = measured_costs(work, options.repeats)
        runs = best_runs(work, options.repeats)
        sections = [_section(measured, runs, options), _parts_section(fitted_costs(measured)[0], options)]
    for text in sections:
        print(text)
        if options.write:
            write_section(text)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--costs",
        type=float,
        nargs=3,
        metavar=("S", "MS", "MS"),
        help="of a series, of 10^6 decoded bytes, and more if compressed, as measured before: simulates parts alone",
    )
    add_usual_options(parser, "2.5 GB")
    return parser.parse_args()


def _section(measured: Measured, runs: dict[int, Run], options: argparse.Namespace) -> str:
    costs, error = fitted_costs(measured)
    jobs = rsna_jobs(costs, options.seed)
    packed = sum(job.packed for job in jobs) / len(jobs)
    lines = ["# The whole RSNA set, simulated", ""]
    lines += [f"- {key}: {value}" for key, value in machine(("numpy", "scipy", "pydicom", "numcodecs")).items()]
    lines += [f"- load of the last minute at the end: {os.getloadavg()[0]:.1f}"]
    lines += [f"- command: `{command_line('benchmarks.rsna_makespan')}`", ""]
    lines += [_NOTES.format(**_told(costs), error=error, packed=packed, repeats=options.repeats, seed=options.seed)]
    cpu_h, longest_s = sum(j.cpu_s for j in jobs) / 3600, max(j.cpu_s for j in jobs)
    lines += [
        f"Altogether {cpu_h:.1f} hours of one core; the series that takes longest computes for {longest_s:.0f} s."
    ]
    lines += ["", "## Orders of one queue", "", *_orders(jobs)]
    lines += ["", "## Measured here", "", *_alone(measured), "", *_together(runs)]
    return "\n".join(lines) + "\n"


def _told(costs: Costs) -> dict[str, float]:
    return {
        "series_s": costs.series_s,
        "mb_s": costs.mb_s * 1e3,
        "decode_mb_s": costs.decode_mb_s * 1e3,
        "ratio": RATIO,
    }


def _orders(jobs: list[Job]) -> list[str]:
    """One queue that all workers take from: one machine, or a Dask cluster."""
    orders = {
        "largest first": sorted(jobs, key=lambda j: -j.size),
        "by UID": sorted(jobs, key=lambda j: j.uid),
        "smallest first": sorted(jobs, key=lambda j: j.size),
        "longest first": sorted(jobs, key=lambda j: -j.cpu_s),
    }
    lines = [_ORDERS_NOTES]
    lines += [f"| workers | GB/s | ideal | {' | '.join(orders)} |", f"|--:|--:|--:|{'--:|' * len(orders)}"]
    for workers in _WORKERS:
        for bandwidth in _BANDWIDTHS:
            ideal = least(jobs, workers, bandwidth)
            found = [makespan([order], workers, bandwidth) for order in orders.values()]
            cells = " | ".join(f"{s / 60:.1f} (+{max(s / ideal - 1, 0):.0%})" for s in found)
            lines.append(f"| {workers} | {bandwidth / 1e9:g} | {ideal / 60:.1f} | {cells} |")
    return lines


def _parts_section(costs: Costs, options: argparse.Namespace) -> str:
    """Parts that are dealt out beforehand, each with workers of its own."""
    jobs = rsna_jobs(costs, options.seed)
    told = _told(costs)
    lines = ["# The RSNA set in parts, simulated", ""]
    lines.append(
        f"- costs: {told['series_s']:.2f} s a series, {told['mb_s']:.2f} ms for 10^6 decoded bytes, "
        f"{told['decode_mb_s']:.2f} ms more if compressed"
    )
    lines += [f"- command: `{command_line('benchmarks.rsna_makespan')}`", ""]
    lines += [_PARTS_NOTES.format(bandwidth=_PARTS_BANDWIDTH / 1e9, spread=_ESTIMATE_SPREAD)]
    error = np.random.default_rng(options.seed).normal(0.0, _ESTIMATE_SPREAD, len(jobs))
    weights = {
        "by bytes": np.array([job.size for job in jobs]),
        "by seconds": np.array([job.expected_s for job in jobs]) * np.exp(error),
    }
    lines += ["| tasks x workers | ideal | by bytes | by seconds | by bytes, stealing | by seconds, stealing |"]
    lines[-1] += " max by mean: by bytes | by seconds |"
    lines += ["|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for tasks, each in _PARTS:
        queues = {how: [[jobs[i] for i in part] for part in deal(by, tasks)] for how, by in weights.items()}
        minutes = [least(jobs, tasks * each, _PARTS_BANDWIDTH)]
        for stealing in (False, True):
            minutes += [makespan(q, each, _PARTS_BANDWIDTH, stealing=stealing) for q in queues.values()]
        loads = [[sum(job.cpu_s for job in queue) for queue in of] for of in queues.values()]
        cells = [f"{s / 60:.1f}" for s in minutes] + [f"{max(load) / np.mean(load):.2f}" for load in loads]
        lines.append(f"| {tasks} x {each} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _alone(measured: Measured) -> list[str]:
    lines = ["| series of 512 x 512 pixels | CPU s | wall s |", "|---|--:|--:|"]
    return lines + [f"| {syntax}, {n} slices | {c:.2f} | {w:.2f} |" for (syntax, n), (c, w) in measured.items()]


def _together(runs: dict[int, Run]) -> list[str]:
    slices = [n for _, n in TOGETHER]
    gb = sum(slices) * SLICE_MB / 1e3
    lines = [_RUNS_NOTES.format(series=len(slices), least=min(slices), most=max(slices), gb=gb)]
    lines += ["| workers | s | speed-up | outside the workers, s | share | CPU of the parent, s | all series, s |"]
    lines += ["|--:|--:|--:|--:|--:|--:|--:|"]
    for workers, run in runs.items():
        lines.append(
            f"| {workers} | {run.seconds:.1f} | {runs[1].seconds / run.seconds:.2f} | {run.outside_s:.2f} "
            f"| {run.outside_s / run.seconds:.1%} | {run.parent_cpu_s:.2f} | {run.built_s:.1f} |"
        )
    slower = runs[2].built_s / runs[1].built_s
    return [*lines, "", _SHARES_NOTES.format(slower=slower, at_best=2 / slower)]


if __name__ == "__main__":
    sys.exit(main())
