"""Figures -> Markdown."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.contenders import CONTENDERS

if TYPE_CHECKING:
    from benchmarks.precache import Runs

RESULTS = Path(__file__).parent / "RESULTS.md"
_PACKAGES = (
    "aneurysm", "numpy", "scipy", "pydicom", "python-gdcm", "pylibjpeg-openjpeg", "numcodecs", "zarr",
    "SimpleITK", "itk", "monai", "torch", "dcm2niix",
)  # fmt: skip
_NOTES = """\
Seconds are wall time on one core with one thread, files in the page cache, imports and a warm-up on eight
slices not counted. "Ratio" is the contender's least CPU time over ours, and the aims are judged by it too: it
is what the clock would show on an idle machine, but for some 30 ms that we wait for the disk to have
everything. Peak memory is the process's, libraries included; "before" is what the libraries and the warm-up
had taken already. "AA": is the image kept from aliasing when it is shrunk? Contenders (a), (b) and (d) take
slices for evenly spaced and untilted, and write neither hash nor metadata; (c) and (e) do not resample at all.
"""


@dataclass(frozen=True)
class Target:
    """One aim, what was found, and whether that will do."""

    aim: str
    found: str
    met: bool


def machine(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Say what the figures were taken on, and with which versions of ``packages``."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _cpu_model(),
        "cores": f"{os.cpu_count()}, load {os.getloadavg()[1]:.1f} (5 minutes) at the end",
        "memory": f"{memory_gb:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {found}" for name in packages if (found := _version(name))),
    }


def markdown(
    results: dict[str, dict[str, Runs]],
    targets: list[Target],
    about: dict[str, str],
    command: str,
    repeats: int,
) -> str:
    """Write the page: machine, aims, and a table for each series."""
    lines = ["# Precaching one series, beside other tools", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += [f"- command: `{command}`, {repeats} runs each, taking turns (2 of those that need more than 5 s)"]
    lines += ["", _NOTES]
    lines += aims(targets)
    for name, runs in results.items():
        lines += [f"## {name}", "", *_table(runs), ""]
    return "\n".join(lines).rstrip() + "\n"


def aims(targets: list[Target]) -> list[str]:
    """Return the lines of a table of aims; none if there are none."""
    if not targets:
        return []
    lines = ["## Aims", "", "| aim | found | |", "|---|---|---|"]
    lines += [f"| {target.aim} | {target.found} | {'met' if target.met else '**missed**'} |" for target in targets]
    return [*lines, ""]


def command_line(module: str) -> str:
    """Return how this run was started, without the folders that it works in: those are this machine's alone."""
    arguments = sys.argv[1:]
    for option in ("--work", "--cache"):
        while option in arguments:
            at = arguments.index(option)
            del arguments[at : at + 2]
    return " ".join([f"python -m {module}", *arguments])


def write_section(text: str) -> None:
    """Put ``text``, which opens with a heading ``# ...``, into RESULTS.md in place of the section of that heading."""
    own = text.splitlines()[0]
    sections = re.split(r"^(?=# )", RESULTS.read_text() if RESULTS.exists() else "", flags=re.MULTILINE)
    kept = [section.strip() for section in sections if section.strip()]
    titles = [section.splitlines()[0] for section in kept]
    if own in titles:
        kept[titles.index(own)] = text.strip()
    else:
        kept.append(text.strip())
    RESULTS.write_text("\n\n".join(kept) + "\n")


def _table(runs: dict[str, Runs]) -> list[str]:
    lines = [
        "| contender | AA | fastest s | median s | least CPU s | ratio | peak MB | before MB | written MB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    ours = runs["ours"].cpu_s if "ours" in runs else []
    for key, run in runs.items():
        contender = CONTENDERS[key]
        head = f"| {contender.title} | {contender.anti_aliased} |"
        if run.error or not run.seconds:
            lines.append(f"{head} | | | | | | can't: {run.error.replace('|', '/')} |")
            continue
        ratio = f"{min(run.cpu_s) / min(ours):.2f}" if ours else ""
        lines.append(
            f"{head} {min(run.seconds):.3f} | {median(run.seconds):.3f} | {min(run.cpu_s):.2f} | {ratio} "
            f"| {max(run.peak_mb):.0f} | {max(run.before_mb):.0f} | {max(run.out_mb):.1f} |"
        )
    return lines


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
