"""precache(): a data folder -> a cache. Plans, runs workers, and writes the manifest.

What a kill at any moment leaves behind: complete volumes, and abandoned work in .building/ that the next run
sweeps. What two runs at once do: each series is built by whoever claims it first; the other finds it done, or in the
end waits for it, and says so if it does not come.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from aneurysm.errors import AneurysmError, StoreError, StoreRefusedError, UsageError
from aneurysm.precaching.agreed_plan import remove_deals
from aneurysm.precaching.build_series import Outcome, SeriesJob
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.engines import Engine, Local, WaitTiming, run_jobs
from aneurysm.precaching.ledger import prune_runs, run_ledger
from aneurysm.precaching.partition import Shard
from aneurysm.precaching.plan import Counts, Plan, PlannedSeries
from aneurysm.precaching.planning import Choice, Task
from aneurysm.precaching.publish import sweep
from aneurysm.precaching.relabel import Update
from aneurysm.precaching.remote_destination import open_destination
from aneurysm.precaching.run_id import given_run_id, run_id
from aneurysm.precaching.stealing import portions
from aneurysm.precaching.tasks import find_task
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.processes.children import NO_LIMITS, Limits, Runner, runner
from aneurysm.rawdata.bucket import open_data
from aneurysm.rawdata.folder import Inventory
from aneurysm.spec import CacheSpec, load_spec

_MANIFEST_SHARE: Final = 0.03
"""So much of a run may go into keeping the manifest up to date on the way."""


class RunProgress(Protocol):
    """What `precache` tells as it goes along. All in the calling thread, in this order."""

    def started(self, inventory: Inventory, todo: int, there: int, bytes_in: int) -> None:
        """``todo`` series of ``bytes_in`` bytes are to be built; ``there`` are there already."""

    def finished(self, outcome: Outcome) -> None:
        """One series is done, one way or another."""


@dataclass
class RunSummary:
    """
    What came of a run.

    ``cached``, ``rejected`` and ``failed`` are of this run; ``skipped`` was done already; ``busy`` is another run at,
    to be built or to be updated. ``changed`` are not as they were when the plan was made, and were left alone;
    ``stolen`` are those of ``cached``, ``rejected``, ``failed`` and ``changed`` that were other tasks' to do.
    """

    run: str = ""
    """Its name, as `aneurysm status --run` takes it."""
    cached: int = 0
    rejected: int = 0
    failed: int = 0
    skipped: int = 0
    busy: int = 0
    changed: int = 0
    stolen: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    updated: int = 0
    """Volumes, and records of series that are not cached, whose annotations were updated from the tables and masks."""
    updates: Counter[str] = field(default_factory=Counter)
    """How many of each kind these were; see `aneurysm.precaching.relabel.Update`."""
    not_updated: dict[str, str] = field(default_factory=dict)
    """Why the annotations of a series could not be, by UID."""
    has_labels: bool = True
    """Whether there is a train.csv."""
    total_cached: int = 0
    """In the cache altogether; of a shard's series, if there is one."""
    total_not_cached: int = 0
    """Rows of the manifest that are not cached, of this run or an earlier one; of a shard, series without a volume."""

    def count_updates(self, updates: Iterable[Update]) -> None:
        """Count what was done about the annotations of volumes that were there."""
        for update in updates:
            if update.problem:
                self.not_updated[update.uid] = update.problem
            elif update.busy:
                self.busy += 1
            else:
                self.updated += 1
                self.updates.update(update.changes)


def precache(
    data: str | Path,
    cache: str | Path,
    *,
    spec: str | Path = "rsna-1mm",
    workers: int = 1,
    limit: int | None = None,
    series: Sequence[str] = (),
    retry_failed: bool = False,
    overwrite: bool = False,
    shard: Shard | None = None,
    plan: Plan | None = None,
    steal: bool = False,
    timeout_s: float | None = None,
    memory_mb: int | None = None,
    dask: str | None = None,
    scheduler_file: Path | None = None,
    progress: RunProgress | None = None,
    patience_s: float = WaitTiming.patience_s,
) -> RunSummary:
    """
    Build what is missing of the cache of ``data``.

    Parameters
    ----------
    data, cache
        Folder of DICOM series; folder of the cache, made if absent. Either may be the URL of an object store
        (``s3://bucket/prefix``).
    spec
        Name of a shipped spec, or path of one's own.
    workers
        Processes, besides this one: a decoder that crashes costs one series and not the program. 0, for debugging: all
        is done in this process.
    limit
        At most this many series that are still to be built, the largest first.
    series
        Only these UIDs.
    retry_failed
        Try again what an earlier run rejected or failed on.
    overwrite
        Build the chosen series again even if they are there.
    shard
        Only this part of the chosen series. The manifest is then left to `aneurysm.cache.tables.write_tables`,
        once all shards are done: hundreds of tasks that all read a whole cache would be a burden to its disk.
    plan
        What the parts are: ``shard`` says which one. Spec and choice of series are the plan's, whatever else is given.
    steal
        When the part is done, take series of other parts that nobody has in hand.
    timeout_s, memory_mb
        What one series may take: seconds, and resident memory in MB (10^6 bytes). One that takes more is tried once
        more alone, then recorded. Looking through the data is held to the same limits.
    dask, scheduler_file
        Address of the scheduler of a running Dask cluster, or the file with it: series are built by its workers, and
        ``workers`` only look through the data. Data and cache must have the same paths there.
    progress
        Is told how it goes.
    patience_s
        How long to wait, in the end, for series that another run is building.

    Raises
    ------
    PlanError
        The plan is of other data or of another cache, or was damaged.
    UsageError
        The data, spec, a UID or a number is not usable; or the cache is of another spec; or there is no such Dask
        cluster, or its workers are of no use.
    NoSpaceError
        Before the start or on the way. What is cached is complete.
    CacheError
        The cache can't be written, or not any more.
    ClusterError
        The Dask cluster was lost on the way.
    StoreError
        An object store fails. What is cached is complete.
    """
    _check(limit=limit, workers=workers or 1)
    limits = Limits(timeout_s, memory_mb)
    if workers == 0 and limits != NO_LIMITS:
        raise UsageError("timeout_s and memory_mb hold for processes; workers is 0, which is none but this one")
    started = time.perf_counter()
    choice, resolved = _chosen(plan, shard, spec, Choice(tuple(series), retry_failed, overwrite))
    if steal and (choice.overwrite or shard is None):
        why = "there are no parts" if shard is None else "what is overwritten is never done"
        raise UsageError(f"there is nothing to steal: {why}")
    run = plan.run if plan is not None and given_run_id(os.environ) is None else run_id(os.environ)
    open_engine = _opener(dask, scheduler_file)
    given = open_data(data)
    with (
        open_destination(cache) as place,
        runner(workers) as processes,
        open_engine(processes, workers, given.path, limits) as engine,
        ExitStack() as stack,
    ):
        layout = place.layout
        task = find_task(
            place,
            given,
            resolved,
            choice,
            shard=shard,
            plan=plan,
            array=given_run_id(os.environ),
            limit=limit,
            workers=workers,
            limits=limits,
            processes=processes,
        )
        with translate_write_errors(layout.root):
            secret = place.patient_secret()
            # No sooner: a run that is refused is none.
            ledger = stack.enter_context(run_ledger(layout.root, place.url, run, str(shard or "")))
            if shard is None or shard.index == 0:
                prune_runs(layout, place.url)

        def job_of(planned: PlannedSeries) -> SeriesJob:
            return SeriesJob(
                planned.source,
                planned.notes,
                planned.mask,
                layout.root,
                resolved,
                secret,
                choice.overwrite,
                place.url,
                choice.retry_failed,
                run=run,
                size=planned.facts.bytes,
                expected_s=planned.seconds,
                planned=planned.facts if task.is_planned else None,
            )

        jobs = [job_of(planned) for planned in task.todo]
        summary = RunSummary(run=run, skipped=task.done, has_labels=task.has_labels)
        summary.count_updates(task.updates)
        ledger.write(
            "run_started",
            series=_aim(task.whole, limit, shard),
            done=task.whole.done,
            not_cached=task.whole.not_cached,
            todo=len(jobs),
            bytes=sum(job.size for job in jobs),
            expected_s=round(sum(job.expected_s for job in jobs), 3),
        )
        if progress:
            progress.started(task.inventory, len(jobs), summary.skipped, sum(job.size for job in jobs))
        seconds: dict[str, float] = {}
        try:
            # Closed at once when the run is asked to stop: nobody should build on while the tables are written.
            with closing(run_jobs(jobs, engine, layout, WaitTiming(patience_s))) as outcomes:
                _run(outcomes, place, summary, seconds, progress, shard)
            for portion in portions(place, task.others, retry=choice.retry_failed) if steal else ():
                stolen = [job_of(planned) for planned in portion]
                with closing(run_jobs(stolen, engine, layout, WaitTiming(patience_s=0.0))) as outcomes:
                    _run(_taken(outcomes, summary), place, summary, seconds, progress, shard)
        except SystemExit:
            # A batch system gives it seconds, and the tables of a large cache take minutes, as may a store.
            if not place.url:
                with suppress(OSError):
                    place.leave_seconds(seconds)
                    sweep(layout)
            raise
        except BaseException as error:
            with suppress(AneurysmError):  # what ends the run may keep the tables from being written, too
                _finish(place, task, seconds, summary, shard)
            if isinstance(error, StoreRefusedError):
                # It was of use when the run began: credentials that ran out, or a network that is down.
                raise StoreError(str(error)) from error
            raise
        _finish(place, task, seconds, summary, shard)
        if not (summary.busy or summary.changed):
            _end(place, task, is_whole=shard is None and not series and limit is None)
        ledger.write("run_ended", how="done", not_cached=summary.total_not_cached, busy=summary.busy)
    summary.seconds = time.perf_counter() - started
    return summary


def _chosen(plan: Plan | None, shard: Shard | None, spec: str | Path, choice: Choice) -> tuple[Choice, CacheSpec]:
    """Return which series are wanted, and of which spec: with a plan it says so."""
    if plan is None:
        return choice, load_spec(spec)
    if shard is None:
        raise UsageError(f"{plan.folder.name} has {plan.count} parts: which one?")
    return Choice((), plan.document.retry_failed, plan.document.overwrite), plan.spec()


def _end(place: Destination, task: Task, *, is_whole: bool) -> None:
    """Remove the plans that were of use until now: nothing of the task, or of all there is, is missing."""
    with translate_write_errors(place.layout.root):
        task.finish()
        if is_whole:
            remove_deals(place)


def _aim(whole: Counts, limit: int | None, shard: Shard | None) -> int:
    """Return how many series all tasks together are to have done in the end."""
    return whole.series if limit is None else min(whole.series, whole.done + limit * (shard.count if shard else 1))


def _check(**numbers: int | None) -> None:
    for name, given in numbers.items():
        if given is not None and given < 1:
            raise UsageError(f"{name} is {given}, at least 1 is needed")


def _opener(
    dask: str | None, scheduler_file: Path | None
) -> Callable[[Runner, int, Path | None, Limits], AbstractContextManager[Engine]]:
    """Return what opens the engine; an extra that it needs and that is not installed shows before data are opened."""
    if dask is None and scheduler_file is None:
        return lambda processes, workers, _data, limits: nullcontext(Local(processes, workers, limits))
    from aneurysm.precaching.dask_engine import dask_engine

    return lambda _processes, _workers, data, limits: dask_engine(dask, scheduler_file, data, limits)


def _taken(outcomes: Iterable[Outcome], summary: RunSummary) -> Iterator[Outcome]:
    """Yield what came of series of other tasks, but for what these have in hand, or have done by now."""
    for outcome in outcomes:
        if outcome.status not in ("skipped", "busy"):
            summary.stolen += 1
            yield outcome


def _run(
    outcomes: Iterable[Outcome],
    place: Destination,
    summary: RunSummary,
    seconds: dict[str, float],
    progress: RunProgress | None,
    shard: Shard | None,
    manifest_every_s: float = 60.0,
) -> None:
    next_manifest = time.monotonic() + manifest_every_s
    for outcome in outcomes:
        summary.skipped += outcome.status == "skipped"
        summary.busy += outcome.status == "busy"
        summary.changed += outcome.status == "changed"
        if outcome.status not in ("skipped", "busy", "changed"):
            seconds[outcome.uid] = outcome.seconds
            summary.cached += outcome.status == "cached"
            summary.rejected += outcome.status == "rejected"
            summary.failed += outcome.status == "failed"
            summary.bytes_in += outcome.bytes_in
            if outcome.reason:
                summary.reasons[outcome.reason] += 1
        if progress:
            progress.finished(outcome)
        if shard is None and (now := time.monotonic()) > next_manifest:
            with translate_write_errors(place.layout.root):
                place.write_tables(seconds)
            # It looks at every volume there is: of a large cache that takes minutes, so it is done the more seldom.
            taken = time.monotonic() - now
            next_manifest = now + max(manifest_every_s, taken / _MANIFEST_SHARE)


def _finish(
    place: Destination,
    task: Task,
    seconds: dict[str, float],
    summary: RunSummary,
    shard: Shard | None,
) -> None:
    layout = place.layout
    with translate_write_errors(layout.root):
        if shard:
            place.leave_seconds(seconds)
            place.send_records()
            summary.total_cached = len(place.volumes_among(task.uids))
            summary.total_not_cached = len(task.uids) - summary.total_cached
        else:
            counts = place.write_tables(seconds)
            summary.total_cached, summary.total_not_cached = counts.cached, counts.not_cached
        sweep(layout)
