"""Launcher: what torchrun, or Slurm, says in the environment of each of the processes that it starts for one run."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

_INTERACTIVE: Final = ("bash", "interactive")
"""Names of Slurm jobs in which somebody types: the job's tasks are not processes of a run."""
_FIRST_PORT: Final = 15000


@dataclass(frozen=True)
class LaunchedProcess:
    """
    One of the processes of a run that something else started.

    Attributes
    ----------
    rank, size
        Its number among all, from 0, and how many there are.
    local_rank, local_size
        The same on its machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


def launched_process() -> LaunchedProcess | None:
    """Return which process of its run this one is, by its environment; None if nothing has launched it."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:  # torchrun's, which others set, too
        rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
        return LaunchedProcess(rank, size, int(env.get("LOCAL_RANK", rank)), int(env.get("LOCAL_WORLD_SIZE", size)))
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        size, nodes = int(env["SLURM_NTASKS"]), int(env.get("SLURM_NNODES", "1"))
        rank, local_rank = int(env.get("SLURM_PROCID", "0")), int(env.get("SLURM_LOCALID", "0"))
        return LaunchedProcess(rank, size, local_rank, -(-size // nodes))
    return None


def is_launched() -> bool:
    """Return True if torchrun or Slurm started the processes of this run, which then does not start its own."""
    return launched_process() is not None


def is_first_process() -> bool:
    """Return True unless torchrun or Slurm started this process as another than the first of its run."""
    process = launched_process()
    return process is None or process.rank == 0


def set_meeting_point() -> None:
    """Put into the environment where torch's processes meet, which Slurm, unlike torchrun, does not do."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1"
    os.environ.setdefault("MASTER_ADDR", first_node(nodes))
    # The same in all processes of a job, and another one in most other jobs on the machine.
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ.setdefault("MASTER_PORT", str(_FIRST_PORT + job % 10_000))


def first_node(nodes: str) -> str:
    """Return the first name of a list as Slurm writes it, ``gpu[03-05,09],cpu1`` say."""
    match = re.match(r"([^,\[\s]*)(?:\[(\w+)[^\]]*\]([^,\[\s]*))?", nodes)
    assert match is not None  # also an empty text matches
    return "".join(part or "" for part in match.groups())
