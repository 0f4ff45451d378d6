"""What the operating system says of this machine: mounts, memory, CPUs, quotas. Text in, facts out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

_MOST_TEXT: Final = 2**20
_TOOL_S: Final = 5.0
_UNLIMITED: Final = 2**60
"""So many bytes are no limit: cgroups of the first version write 2^63 less a page where there is none."""
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def read_text(path: str) -> str:
    """Return the beginning of a file of the system; nothing if there is none, or it can't be read."""
    with suppress(OSError), Path(path).open("rb") as file:
        return file.read(_MOST_TEXT).decode("utf-8", "replace")
    return ""


def run_tool(command: Sequence[str]) -> str:
    """Return what a tool writes; nothing if there is no such tool, or it fails."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(  # noqa: S603 - of the system, without a shell
            [program, *command[1:]], capture_output=True, text=True, timeout=_TOOL_S, check=False, errors="replace"
        )
        return done.stdout[:_MOST_TEXT]
    return ""


@dataclass(frozen=True)
class Host:
    """How this machine is asked: a file of the system, a tool, the environment; other ones in tests."""

    read: Callable[[str], str] = read_text
    run: Callable[[Sequence[str]], str] = run_tool
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True)
class Mount:
    """A file system: where it is mounted, its type, and its options by name (of `name=value` too)."""

    point: str
    kind: str
    options: Mapping[str, str]
    source: str


def mount_of(path: Path, host: Host) -> Mount | None:
    """Return the file system on which the absolute ``path`` lies; None if that is not known."""
    found = None
    for line in host.read("/proc/self/mounts").splitlines():
        fields = line.split(" ")
        if len(fields) < 4:
            continue
        source, point, kind, options = (_ESCAPED.sub(lambda m: chr(int(m[1], 8)), f) for f in fields[:4])
        # The last one that covers it counts: of two at one place the later lies on top.
        if PurePosixPath(path).is_relative_to(point) and (found is None or len(point) >= len(found.point)):
            pairs = (option.partition("=") for option in options.split(","))
            found = Mount(point, kind, {name: value for name, _, value in pairs}, source)
    return found


def memory_limit(host: Host) -> int | None:
    """Return the bytes that the processes of this job may have: of the cgroups above, of Slurm, or of the machine."""
    paths = [*_cgroup_files(host, "memory.max"), *_cgroup_files(host, "memory.limit_in_bytes", "memory")]
    limits = [int(text) for path in paths if (text := host.read(path).strip()).isdecimal()]
    if (text := host.environ.get("SLURM_MEM_PER_NODE", "")).isdecimal():
        limits.append(int(text) * 2**20)
    if found := re.search(r"^MemTotal: +(\d+) kB", host.read("/proc/meminfo"), re.MULTILINE):
        limits.append(int(found[1]) * 1024)
    return min((limit for limit in limits if 0 < limit < _UNLIMITED), default=None)


def cpu_quota(host: Host) -> float | None:
    """Return how many CPUs the cgroups above allow; None if any number."""
    quotas = []
    for path in _cgroup_files(host, "cpu.max"):
        quota, _, period = host.read(path).strip().partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def quota_left(mount: Mount, host: Host) -> tuple[int | None, int | None] | None:
    """Return the bytes and inodes that a user may still have on a file system, None: any; or None: not known."""
    if mount.kind == "lustre":
        text = host.run(["lfs", "quota", "-q", "-u", str(os.geteuid()), mount.point])
        row = next((line.split() for line in text.splitlines() if line.split()[:1] == [mount.point]), None)
    else:
        # Of quota(1): -p writes the time of grace as a number, so that the columns are always the same.
        text = host.run(["quota", "-u", "-w", "-p"])
        row = next((line.split() for line in text.splitlines() if line.split()[:1] == [mount.source]), None)
    if row is None or len(row) < 8:
        return None
    blocks, block_limits, files, file_limits = row[1], row[2:4], row[5], row[6:8]
    try:
        kilobytes = _left(blocks, block_limits)
        return None if kilobytes is None else kilobytes * 1024, _left(files, file_limits)
    except ValueError:
        return None


def _left(used: str, limits: Sequence[str]) -> int | None:
    """Return what is left to the lowest limit, of which 0 is none; a star marks a limit that is exceeded."""
    known = [int(limit) for limit in limits if int(limit)]
    return max(0, min(known) - int(used.rstrip("*"))) if known else None


def _cgroup_files(host: Host, name: str, controller: str = "") -> list[str]:
    """Return the paths of a file of the cgroup of this process and of those above; ``controller``: of version 1."""
    found = []
    for line in host.read("/proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == controller or (controller and controller in controllers.split(",")):
            root = f"/sys/fs/cgroup/{controller}".rstrip("/")
            here = PurePosixPath(path)
            found += [f"{root}{'' if str(p) == '/' else p}/{name}" for p in (here, *here.parents) if p.is_absolute()]
    return found
