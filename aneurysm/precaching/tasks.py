"""find_task(): what a process is to do: all, a part of a plan, or its part of an array's. make_plan(): such a plan."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from aneurysm.errors import UsageError
from aneurysm.precaching.agreed_plan import agreed_plan
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.expected_seconds import recorded_costs
from aneurysm.precaching.partition import Shard
from aneurysm.precaching.plan import Plan
from aneurysm.precaching.plan_folder import PlanFolder, plan_folder
from aneurysm.precaching.planning import Choice, Planner, Task, part_of_plan
from aneurysm.precaching.relabel import Update
from aneurysm.precaching.remote_destination import open_destination
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.processes.children import Limits, Runner, runner
from aneurysm.rawdata.bucket import open_data
from aneurysm.rawdata.folder import DataFolder
from aneurysm.spec import CacheSpec, load_spec


def find_task(
    place: Destination,
    data: DataFolder,
    spec: CacheSpec,
    choice: Choice,
    *,
    shard: Shard | None,
    plan: Plan | None,
    array: str | None,
    limit: int | None,
    workers: int,
    limits: Limits,
    processes: Runner,
) -> Task:
    """
    Return what this process is to do.

    Parameters
    ----------
    shard
        Which part, if it is one of several.
    plan
        What the parts are; ``choice`` and ``spec`` are then the plan's.
    array
        Name of the run that all tasks have in common, if they have one: they agree on a plan. Without it all series,
        whether or not they are missing, are dealt out by their bytes: tasks that start at different times, and know
        nothing of each other, come to the same parts.
    limit
        At most so many series.

    Raises
    ------
    PlanError
        As `part_of_plan`.
    DataError
        As `Planner`.
    NoSpaceError, CacheError, StoreError
        The cache has too little room, or can't be written.
    """

    def planner() -> Planner:
        return Planner(place, data, spec, choice, workers=workers, limits=limits, processes=processes)

    if plan is not None:
        assert shard is not None
        return part_of_plan(place, plan, data, shard, limit)
    if shard is None or shard.count == 1 or array is None:
        return planner().task(shard, limit)
    updates: list[Update] = []

    def make(folder: PlanFolder) -> Plan:
        made, changed = planner().plan(shard.count, folder, recorded_costs(place.name), once=True)
        updates.extend(changed)
        return made

    common = [data.name, spec.digest, shard.count, asdict(choice), data.fingerprint().contents()]
    with translate_write_errors(place.layout.root):
        place.open_part(spec)
        own = agreed_plan(place, array, common, make, again=choice.retry_failed or choice.overwrite)
    task = part_of_plan(place, own, data, shard, limit)
    task.updates = updates
    if limit is None:
        task.finish = lambda: own.finish(shard.index)
    return task


def make_plan(
    data: str | Path,
    cache: str | Path,
    count: int,
    *,
    out: str | Path | None = None,
    spec: str | Path = "rsna-1mm",
    retry_failed: bool = False,
    workers: int = 1,
    timeout_s: float | None = None,
    memory_mb: int | None = None,
) -> tuple[Plan, list[Update]]:
    """
    Deal out what is missing of the cache of ``data`` to ``count`` parts, and write the plan.

    ``out`` is a folder or URL for it, in the cache if there is none; the others are those of
    `aneurysm.precaching.run.precache`. Return the plan, and what came of annotations that were to be brought up to the
    tables and masks.

    Raises
    ------
    UsageError
        The data, spec or a number is not usable, or ``out`` holds something else.
    NoSpaceError, CacheError, StoreError
        The cache has too little room, or can't be written.
    """
    if count < 1:
        raise UsageError(f"a plan has at least 1 part, not {count}")
    resolved, choice = load_spec(spec), Choice(retry_failed=retry_failed)
    limits = Limits(timeout_s, memory_mb)
    with open_destination(cache) as place, runner(workers) as processes:
        folder = plan_folder(out or f"{place.name}/{place.layout.plan.name}")
        folder.check()
        planner = Planner(place, open_data(data), resolved, choice, workers=workers, limits=limits, processes=processes)
        return planner.plan(count, folder, recorded_costs(place.name))
