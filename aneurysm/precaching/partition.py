"""Shard: which of the series a task of several takes, without a word between them."""

from __future__ import annotations

import heapq
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aneurysm.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, from 0; ``origin`` says who named it."""

    index: int
    count: int
    origin: str = "--shard"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"{self.origin} {self.index}/{self.count}: at least 1 shard is needed")
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"{self.origin} {self.index}/{self.count}: of {self.count} shards the first is 0 and the last is "
                f"{self.count - 1}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def announcement(self) -> str:
        """What a log says of it at the start."""
        return f"shard {self} ({self.origin})"


def deal(weights: NDArray[np.float64] | NDArray[np.int64], count: int) -> list[NDArray[np.int32]]:
    """
    Return ``count`` parts of all that have ``weights`` (series,), by their indices, the heaviest first.

    The heaviest goes first, of like ones that of the lowest index, each to the part that has least so far: the sums
    then differ by at most one weight, and whoever has the same weights comes to the same parts (Graham 1969, longest
    processing time first).
    """
    loads = [(0.0, part) for part in range(count)]
    # What is not known weighs something, too: else one part would get all such series.
    lightest = float(min(weights[weights > 0], default=1))
    order = np.argsort(-weights, kind="stable").astype(np.int32)
    parts = [array("i") for _ in range(count)]
    for index in map(int, order):
        load, part = loads[0]
        heapq.heapreplace(loads, (load + max(float(weights[index]), lightest), part))
        parts[part].append(index)
    return [np.asarray(part, np.int32) for part in parts]


def find_part(given: str | None, environment: Mapping[str, str], count: int) -> Shard:
    """
    Return the part of a plan of ``count`` parts that ``--shard`` names, or the job that this process is a task of.

    ``given`` is ``I``, ``I/N`` or ``/N``, where N must be ``count``. Without it the number of a job's task is that of
    its part, whichever of them the job has: some of a plan's parts can be done again by ``--array=3,7``.

    Raises
    ------
    UsageError
        It can't be read, is out of range, or nobody says which part.
    """
    if given is not None:
        if re.fullmatch(r"\d+", given.strip(), re.ASCII):
            return Shard(int(given), count)
        shard = find_shard(given, environment)
        assert shard is not None
        if shard.count != count:
            raise UsageError(f"--shard {given}: the plan has {count} parts, and not {shard.count}")
        return shard
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        if (index := _number(environment, name)) is not None:
            # All of its tasks say so, not the last alone: of an array from 1 nobody would do part 0.
            last = max(index, _number(environment, "SLURM_ARRAY_TASK_MAX") or 0)
            if last >= count:
                raise UsageError(
                    f"the array has a task {last}, and the last part of the plan is {count - 1}: submit it with "
                    f"--array=0-{count - 1}, or say with --shard which part a task takes"
                )
            return Shard(index, count, name)
    if count == 1:
        return Shard(0, 1, "the only part of the plan")
    raise UsageError(f"which part of the plan? Say it with --shard I, from 0 to {count - 1}")


def find_shard(given: str | None, environment: Mapping[str, str]) -> Shard | None:
    """
    Return the shard that ``--shard`` names, or the job that this process is a task of; None if neither does.

    ``given`` is ``I/N``, or ``/N`` where the environment is to say which: SLURM_ARRAY_TASK_ID, or JOB_COMPLETION_INDEX
    of a Kubernetes indexed job, counted from 0. Without it, a Slurm array says how many tasks it has, and may begin
    anywhere (``--array=5-20:5``); for Kubernetes, which does not, ANEURYSM_SHARDS does.

    Raises
    ------
    UsageError
        It can't be read, is out of range, or the environment lacks what is needed.
    """
    slurm, kubernetes = _number(environment, "SLURM_ARRAY_TASK_ID"), _number(environment, "JOB_COMPLETION_INDEX")
    if given is None:
        if slurm is not None:
            return _slurm_shard(slurm, environment)
        if kubernetes is None:
            return None
        if (count := _number(environment, "ANEURYSM_SHARDS")) is None:
            raise UsageError(
                f"JOB_COMPLETION_INDEX is {kubernetes}, but of how many? Say it with --shard /N, N being the job's "
                "completions; or --shard 0/1 if this task is to take all series"
            )
        return Shard(kubernetes, count, "JOB_COMPLETION_INDEX/ANEURYSM_SHARDS")
    if not (match := re.fullmatch(r"(\d*)/(\d+)", given.strip(), re.ASCII)):
        raise UsageError(f"--shard {given!r}: expected I/N, such as 0/4 for the first of four, or /N")
    if match[1]:
        return Shard(int(match[1]), int(match[2]))
    index = kubernetes if slurm is None else slurm
    if index is None:
        raise UsageError(f"--shard {given}: which one? Neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set")
    return Shard(index, int(match[2]), "SLURM_ARRAY_TASK_ID" if slurm is not None else "JOB_COMPLETION_INDEX")


def _slurm_shard(task: int, environment: Mapping[str, str]) -> Shard:
    names = ("SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP")
    count, first, last, step = (_number(environment, name) for name in names)
    if count is None or first is None or last is None:
        raise UsageError(f"SLURM_ARRAY_TASK_ID is {task}, but of how many? Say it with --shard /N")
    if count == 1 and task:
        # As `sbatch --array=2` runs a task of an array again. One from 0 may be an array of one task, and be meant so.
        raise UsageError(
            f"SLURM_ARRAY_TASK_ID is {task}, of an array of this task alone: which part is this one's? Say --shard /N, "
            "N being the tasks of the whole array, counted from 0; or --shard 0/1 if it is to take all series"
        )
    step = step or 1
    if (last - first) // step + 1 != count:
        raise UsageError(
            f"the array's {count} tasks, from {first} to {last}, have gaps: which part is this one's? Say it with "
            f"--shard /N, N being the tasks of the whole array, counted from 0"
        )
    return Shard((task - first) // step, count, "SLURM_ARRAY_TASK_ID")


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if text and not re.fullmatch(r"\d+", text, re.ASCII):
        raise UsageError(f"{name} is {text!r}, expected a number")
    return int(text) if text else None
