"""precache(): a data folder -> a cache, on one machine. Plans, runs workers, and writes the manifest.

What a kill at any moment leaves behind: complete volumes, and abandoned work in .building/ that the next run
sweeps. What two runs at once do: each series is built by whoever claims it first; the other finds it done.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import joblib

from aneurysm.annotations.tables import Tables, read_tables
from aneurysm.annotations.vessels import find_mask
from aneurysm.cache.estimate import check_space
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.manifest import write_manifest
from aneurysm.cache.pool import run_jobs
from aneurysm.cache.publish import sweep, write_atomically
from aneurysm.cache.series import Outcome, SeriesJob, write_record
from aneurysm.cache.spec import CacheSpec, load_spec, parse_spec
from aneurysm.dicom.scan import Inventory, SeriesSource, find_series
from aneurysm.errors import CacheError, DataError, Reason, SpecError, SpecMismatchError, UsageError

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
        Processes. With 1, series are built in this process.
    limit
        At most so many series that are still to be built, the largest first.
    series
        Only these UIDs.
    retry_failed
        Try again what an earlier run rejected or failed on.
    overwrite
        Build the chosen series again even if they are there.

    Raises
    ------
    UsageError
        The data, spec, a UID or a number is not usable; or the cache is of another spec.
    NoSpaceError
        Before the start or on the way. What is cached is complete.
    """
    started = time.perf_counter()
    if workers < 1:
        raise UsageError(f"workers is {workers}, at least 1 is needed")
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}, at least 1 is needed")
    resolved = load_spec(spec)
    data, cache = data.absolute(), cache.absolute()
    inventory = find_series(data, workers)
    tables = read_tables(data)
    layout = CacheLayout(cache)
    sources = _chosen(inventory, series)
    _open_cache(layout, resolved)
    sweep(layout)

    if retry_failed:
        for source in sources:
            layout.record(source.uid).unlink(missing_ok=True)
    todo = [s for s in sources if overwrite or not _done(layout, s.uid)]
    sizes = {s.uid: approximate_size(s) for s in todo}
    todo.sort(key=lambda s: (-sizes[s.uid], s.uid))
    todo = todo[:limit]
    summary = Summary(skipped=len(sources) - len(todo) if limit is None else sum(_done(layout, s.uid) for s in sources))
    check_space(todo, resolved, cache)
    if not series:
        _record_missing(layout, resolved, tables, inventory)
    secret = _secret(layout)
    jobs = [
        SeriesJob(s, tables.of(s.uid), find_mask(data, s.uid), cache, resolved, secret, overwrite or retry_failed)
        for s in todo
    ]
    if progress:
        progress.started(inventory, len(todo), summary.skipped, sum(sizes[s.uid] for s in todo))
    try:
        _run(jobs, workers, layout, summary, progress)
    finally:
        sweep(layout)
        summary.seconds = time.perf_counter() - started
    return summary


def _run(jobs: list[SeriesJob], workers: int, layout: CacheLayout, summary: Summary, progress: Progress | None) -> None:
    seconds: dict[str, float] = {}
    written = time.monotonic()
    try:
        for outcome in run_jobs(jobs, workers, layout):
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


def _done(layout: CacheLayout, uid: str) -> bool:
    return layout.volume(uid).exists() or layout.record(uid).exists()


def _open_cache(layout: CacheLayout, spec: CacheSpec) -> None:
    """Make the cache, or make sure that it is of ``spec``."""
    if layout.root.exists() and not layout.root.is_dir():
        raise UsageError(f"{layout.root} is a file; --cache names a folder")
    try:
        layout.volumes.mkdir(parents=True, exist_ok=True)
        if not layout.spec.exists():
            if any(layout.volumes.iterdir()):
                raise CacheError(f"{layout.root} has volumes but no spec.toml: whose they are can't be told")
            write_atomically(layout.spec, spec.to_toml())
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UsageError(f"the cache folder {layout.root} can't be written: {error.strerror}") from error
    there = read_spec(layout)
    if there.digest != spec.digest:
        raise SpecMismatchError(
            f"{layout.root} was made with spec {there.name!r} (digest {there.digest}), not with {spec.name!r} (digest "
            f"{spec.digest}). Name another folder with --cache, or go on with --spec {layout.spec}"
        )


def read_spec(layout: CacheLayout) -> CacheSpec:
    """Return the spec of a cache; raise `CacheError` if there is none, or none that can be read."""
    try:
        return parse_spec(layout.spec.read_text("utf-8"), str(layout.spec))
    except FileNotFoundError as error:
        raise CacheError(f"{layout.root} is no cache: it has no spec.toml") from error
    except SpecError as error:
        raise CacheError(f"the spec of the cache is damaged or of a newer version: {error}") from error


def _record_missing(layout: CacheLayout, spec: CacheSpec, tables: Tables, inventory: Inventory) -> None:
    """Give series that the tables name and the folder lacks a row of their own."""
    there = {s.uid for s in inventory.sources}
    for uid in sorted(tables.notes.keys() - there):
        from aneurysm.dicom.scan import safe_source

        safe = safe_source(uid)
        if not _done(layout, safe.uid):
            notes = tables.of(uid)
            named = "train.csv" if notes.labels else "train_localizers.csv"
            detail = f"named in {named}, but there is no such series in the data"
            write_record(layout, spec, safe.uid, "rejected", Reason.NO_FILES, detail, notes)


def _secret(layout: CacheLayout) -> bytes:
    """Return the key of patient_key: from the environment, or of this cache, made at its first use."""
    if given := os.environ.get("ANEURYSM_PATIENT_KEY"):
        return given.encode()
    if not layout.patient_key.exists():
        temporary = layout.patient_key.with_name(f".patient-key.{os.getpid()}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(temporary, layout.patient_key)  # fails if another run was faster, whose key then counts
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return layout.patient_key.read_text("utf-8").strip().encode()
