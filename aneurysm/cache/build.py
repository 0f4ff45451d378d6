"""precache(): a data folder -> a cache, on one machine. Plans, runs workers, and writes the manifest.

What a kill at any moment leaves behind: complete volumes, and abandoned work in .building/ that the next run
sweeps. What two runs at once do: each series is built by whoever claims it first; the other finds it done.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import joblib

from aneurysm.annotations.tables import Tables, read_tables
from aneurysm.annotations.vessels import find_mask
from aneurysm.cache.estimate import check_space
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.manifest import write_manifest
from aneurysm.cache.opening import is_done, open_cache, patient_secret
from aneurysm.cache.pool import Engine, InProcess, Local, run_jobs
from aneurysm.cache.publish import sweep
from aneurysm.cache.series import Outcome, SeriesJob, write_record
from aneurysm.cache.spec import CacheSpec, load_spec
from aneurysm.cache.supervisor import Limits
from aneurysm.cache.write_errors import write_errors_told
from aneurysm.dicom.scan import Inventory, SeriesSource, find_series, safe_source
from aneurysm.errors import DataError, Reason, UsageError

_MANIFEST_EVERY_S: Final = 60.0


class Progress(Protocol):
    """What `precache` tells as it goes along. All in the calling thread, in this order."""

    def started(self, inventory: Inventory, todo: int, there: int, bytes_in: int) -> None:
        """``todo`` series of ``bytes_in`` bytes are to be built; ``there`` are there already."""

    def finished(self, outcome: Outcome) -> None:
        """One series is done, one way or another."""


@dataclass
class Summary:
    """What came of a run. ``cached``, ``rejected`` and ``failed`` are of this run; ``skipped`` was done already."""

    cached: int = 0
    rejected: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    total_cached: int = 0
    """In the cache altogether."""
    total_not_cached: int = 0
    """Rows of the manifest that are not cached, of this run or an earlier one."""


def usable_cpus() -> int:
    """Return how many CPUs this process may really use: by affinity and container quota, not what the host has."""
    return int(joblib.cpu_count())


def precache(
    data: Path,
    cache: Path,
    *,
    spec: str | Path = "rsna-1mm",
    workers: int = 1,
    limit: int | None = None,
    series: Sequence[str] = (),
    retry_failed: bool = False,
    overwrite: bool = False,
    isolated: bool = False,
    timeout_s: float | None = None,
    memory_mb: int | None = None,
    dask: str | None = None,
    scheduler_file: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """
    Build what is missing of the cache of ``data``.

    Parameters
    ----------
    data, cache
        Folder of DICOM series; folder of the cache, made if absent.
    spec
        Name of a shipped spec, or path of one's own.
    workers
        Processes. With 1, series are built in this process, unless ``isolated``.
    limit
        At most so many series that are still to be built, the largest first.
    series
        Only these UIDs.
    retry_failed
        Try again what an earlier run rejected or failed on.
    overwrite
        Build the chosen series again even if they are there.
    isolated
        A process apart also for one worker, so that a decoder that crashes costs one series and not the run.
    timeout_s, memory_mb
        What one series may take: seconds, and resident memory in MB (10^6 bytes). One that takes more is tried once
        more alone, then recorded. They imply ``isolated``.
    dask, scheduler_file
        Address of the scheduler of a running Dask cluster, or the file with it: series are built by its workers, and
        ``workers`` only look through the data. Data and cache must have the same paths there.
    progress
        Is told how it goes.

    Raises
    ------
    UsageError
        The data, spec, a UID or a number is not usable; or the cache is of another spec; or there is no such Dask
        cluster, or its workers are of no use.
    NoSpaceError
        Before the start or on the way. What is cached is complete.
    CacheError
        The cache can't be written, or not any more.
    ClusterError
        The Dask cluster was lost on the way.
    """
    if workers < 1:
        raise UsageError(f"workers is {workers}, at least 1 is needed")
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}, at least 1 is needed")
    for name, given in (("timeout_s", timeout_s), ("memory_mb", memory_mb)):
        if given is not None and not 0 < given < math.inf:
            raise UsageError(f"{name} is {given}, more than 0 is needed")
    limits = Limits(timeout_s, memory_mb)
    with ExitStack() as stack:
        engine: Engine
        if dask is not None or scheduler_file is not None:
            from aneurysm.cache.dask_engine import dask_engine

            engine = stack.enter_context(dask_engine(dask, scheduler_file, data.absolute(), limits))
        elif workers > 1 or isolated or limits != Limits():
            engine = Local(workers, limits)
        else:
            engine = InProcess()
        return _precache(data, cache, spec, workers, limit, series, retry_failed, overwrite, engine, progress)


def _precache(
    data: Path,
    cache: Path,
    spec: str | Path,
    workers: int,
    limit: int | None,
    series: Sequence[str],
    retry_failed: bool,
    overwrite: bool,
    engine: Engine,
    progress: Progress | None,
) -> Summary:
    started = time.perf_counter()
    resolved = load_spec(spec)
    data, cache = data.absolute(), cache.absolute()
    layout = CacheLayout(cache)
    inventory = find_series(data, workers)
    tables = read_tables(data)
    sources = _chosen(inventory, series)
    with write_errors_told(cache):
        open_cache(layout, resolved)
        sweep(layout)
        if retry_failed:
            for source in sources:
                layout.record(source.uid).unlink(missing_ok=True)
        done = {s.uid for s in sources if is_done(layout, s.uid)}
        todo = [s for s in sources if overwrite or s.uid not in done]
        sizes = {s.uid: approximate_size(s) for s in todo}
        todo.sort(key=lambda s: (-sizes[s.uid], s.uid))
        todo = todo[:limit]
        check_space(todo, resolved, cache)
        if not series:
            _record_missing(layout, resolved, tables, inventory)
        secret = patient_secret(layout)
    jobs = [
        SeriesJob(s, tables.of(s.uid), find_mask(data, s.uid), cache, resolved, secret, overwrite or retry_failed)
        for s in todo
    ]
    summary = Summary(skipped=len(done - {s.uid for s in todo}))
    if progress:
        progress.started(inventory, len(todo), summary.skipped, sum(sizes[s.uid] for s in todo))
    try:
        _run(run_jobs(jobs, engine, layout), layout, summary, progress)
    finally:
        with write_errors_told(cache):
            sweep(layout)
        summary.seconds = time.perf_counter() - started
    return summary


def _run(outcomes: Iterable[Outcome], layout: CacheLayout, summary: Summary, progress: Progress | None) -> None:
    seconds: dict[str, float] = {}
    written = time.monotonic()
    try:
        for outcome in outcomes:
            if outcome.status in ("skipped", "busy"):
                summary.skipped += 1
            else:
                seconds[outcome.uid] = outcome.seconds
                summary.cached += outcome.status == "cached"
                summary.rejected += outcome.status == "rejected"
                summary.failed += outcome.status == "failed"
                summary.bytes_in += outcome.bytes_in
                if outcome.reason:
                    summary.reasons[outcome.reason] += 1
            if progress:
                progress.finished(outcome)
            if time.monotonic() - written > _MANIFEST_EVERY_S:
                write_manifest(layout, seconds)
                written = time.monotonic()
    finally:
        with write_errors_told(layout.root):
            rows = write_manifest(layout, seconds)
        summary.total_cached = sum(r["status"] == "cached" for r in rows)
        summary.total_not_cached = len(rows) - summary.total_cached


def approximate_size(source: SeriesSource) -> int:
    """Return about how many bytes a series has; asking for every file's size would take minutes on a network disk."""
    try:
        files = source.list_files()
        return files[len(files) // 2].stat().st_size * len(files) if files else 0
    except OSError:
        return 0


def _chosen(inventory: Inventory, uids: Sequence[str]) -> list[SeriesSource]:
    if not uids:
        return inventory.sources
    by_uid = {s.uid: s for s in inventory.sources}
    if missing := [u for u in uids if u not in by_uid]:
        known = ", ".join(list(by_uid)[:3])
        raise DataError(
            f"no series {', '.join(missing)} under {inventory.root}; there are {len(by_uid)}, such as {known}"
        )
    return [by_uid[u] for u in dict.fromkeys(uids)]


def _record_missing(layout: CacheLayout, spec: CacheSpec, tables: Tables, inventory: Inventory) -> None:
    """Give series that the tables name and the folder lacks a row of their own."""
    there = {s.uid for s in inventory.sources}
    for uid in sorted(tables.notes.keys() - there):
        safe = safe_source(uid)
        if not is_done(layout, safe.uid):
            notes = tables.of(uid)
            named = "train.csv" if notes.labels else "train_localizers.csv"
            detail = f"named in {named}, but there is no such series in the data"
            write_record(layout, spec, safe.uid, Reason.NO_FILES, detail, notes)
