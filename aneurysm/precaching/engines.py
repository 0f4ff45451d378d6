"""Jobs -> outcomes, by an engine: processes beside this one, or a Dask cluster (dask_engine.py).

Whatever builds, a series that takes its process with it, or more time or memory than it may, costs no other: it is put
aside, tried once more when all others are done, with nothing beside it, and then recorded.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import joblib

from aneurysm.cache.layout import CacheLayout
from aneurysm.errors import Reason, reason_of
from aneurysm.precaching.build_series import Outcome, SeriesJob, build_series, outcome_of, record_of
from aneurysm.precaching.ledger import ledger_of
from aneurysm.precaching.publish import is_claimed, publish_record
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.processes.children import Limits, LostError, Runner

_TRIED_AGAIN: Final = frozenset({Reason.WORKER_KILLED, Reason.OUT_OF_MEMORY, Reason.TIMED_OUT})
"""Reasons that may lie in what else was going on at the time."""
_ATTEMPTS: Final = 10
"""A Dask worker may meet the child of one that died a moment ago, and say that the series is busy."""


@dataclass(frozen=True)
class WaitTiming:
    """How long series are waited for that others hold."""

    patience_s: float = 300.0
    """Series that another run is building, when all others are done."""
    let_go_s: float = 15.0
    """The process of a lost series, which has to end and to let go of its claim."""
    poll_s: float = 1.0


class Engine(Protocol):
    """What builds series. One whose process was lost comes back as a failed outcome, without a record in the cache."""

    def build(self, jobs: Sequence[SeriesJob]) -> Iterator[Outcome]:
        """Build the series of ``jobs``, the first ones first; yield outcomes as they come."""


def run_jobs(
    jobs: Sequence[SeriesJob], engine: Engine, layout: CacheLayout, timing: WaitTiming = WaitTiming()
) -> Generator[Outcome]:
    """Build the series of ``jobs``, in this order as far as the engine allows; yield outcomes as they come."""
    by_uid = {job.source.uid: job for job in jobs}
    lost: list[Outcome] = []
    todo = list(jobs)
    end: float | None = None
    while todo:
        busy: list[SeriesJob] = []
        for outcome in engine.build(todo):
            if outcome.status == "busy":
                busy.append(replace(by_uid[outcome.uid], insist=True))
            elif outcome.reason in _TRIED_AGAIN:
                lost.append(outcome)
            else:
                yield outcome
        if end is None:
            end = time.monotonic() + timing.patience_s
        elif busy:
            time.sleep(timing.poll_s)
        todo = yield from _left_by_others(busy, layout, end, timing.poll_s)
    for first in lost:
        yield _alone(by_uid[first.uid], first, engine, layout, timing)


def _left_by_others(
    busy: list[SeriesJob], layout: CacheLayout, end: float, poll_s: float
) -> Generator[Outcome, None, list[SeriesJob]]:
    """Wait, until ``end``, for other runs to be done with series; return what they left, which may be theirs still."""
    while busy:
        # Of two runs at once the other was at every other series: most are done, or nobody's, if it died.
        left = []
        for job in busy:
            if job.is_done(layout):
                yield _noted(job, Outcome(job.source.uid, "skipped"))
            else:
                left.append(job)
        busy = left
        if time.monotonic() > end:
            for job in busy:
                yield _noted(job, Outcome(job.source.uid, "busy"))
            return []
        if not all(is_claimed(layout, job.source.uid) for job in busy):
            break
        time.sleep(poll_s)  # no process has to start to see that
    return busy


def _alone(job: SeriesJob, first: Outcome, engine: Engine, layout: CacheLayout, timing: WaitTiming) -> Outcome:
    # A retry: of a MemoryError there is a record, by the process itself, which lived.
    again = replace(job, retry=True, insist=True)
    for _ in range(_ATTEMPTS):
        (last,) = engine.build([again])
        if last.status != "busy" or not _let_go(layout, job.source.uid, timing):
            break
    tried = "tried twice, the second time alone"
    if last.status == "busy":
        if first.reason != Reason.TIMED_OUT:  # its process is gone: another run has it
            return last
        last, tried = first, "not tried again: its process could not be ended, or another run is at it"
    if last.reason not in _TRIED_AGAIN:
        return last
    uid, reason = job.source.uid, Reason(last.reason)
    has_volume = layout.volume(uid).exists()
    status, detail = outcome_of(reason, f"{last.detail} ({tried})", has_volume=has_volume)
    if not has_volume:
        with translate_write_errors(layout.root):
            publish_record(layout, record_of(job.spec, uid, reason, detail, job.notes))
    # Of one that took a whole Dask worker along, nobody else has written it.
    return _noted(job, replace(last, status=status, detail=detail))


def _noted(job: SeriesJob, outcome: Outcome) -> Outcome:
    """Return ``outcome``, which is in the ledger from now on."""
    if (ledger := ledger_of(job)) is not None:
        ledger.outcome(job, outcome)
    return outcome


def _let_go(layout: CacheLayout, uid: str, timing: WaitTiming) -> bool:
    """Wait until no process holds a series; return False if one does not let go of it."""
    end = time.monotonic() + timing.let_go_s
    while time.monotonic() < end:
        time.sleep(timing.poll_s)
        if not is_claimed(layout, uid):
            return True
    return False


class Local:
    """``workers`` of ``processes``, each driven by a thread of joblib's, within ``limits`` by series."""

    def __init__(self, processes: Runner, workers: int, limits: Limits) -> None:
        self._processes = processes
        self._workers = max(1, workers)
        self._limits = limits

    def build(self, jobs: Sequence[SeriesJob]) -> Iterator[Outcome]:
        """Build the series of ``jobs``; where that is not awaited, the processes are stopped."""
        parallel = joblib.Parallel(
            n_jobs=max(1, min(self._workers, len(jobs))),
            backend="threading",
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch=2 * self._workers,
        )
        outcomes = parallel(joblib.delayed(build_in_child)(self._processes, job, self._limits) for job in jobs)
        try:
            for outcome in outcomes:  # noqa: UP028 - `yield from` would close it, and warn, before we can
                yield outcome
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # joblib's: that there are results nobody wants
                    outcomes.close()
            self._processes.stop()
            raise
        self._processes.rest()


def build_in_child(processes: Runner, job: SeriesJob, limits: Limits) -> Outcome:
    """
    Build one series in one of ``processes``; say of one that is lost why.

    Raises
    ------
    NoSpaceError, CacheError
        As `build_series`.
    StoppedError
        The processes were stopped.
    """
    ledger = ledger_of(job)
    if ledger is not None:
        ledger.series_started(job)
    try:
        outcome = _build_in_child(processes, job, limits)
    except BaseException:
        if ledger is not None:
            ledger.series_dropped(job)
        raise
    if ledger is not None:
        ledger.series_ended(job, outcome)
    return outcome


def _build_in_child(processes: Runner, job: SeriesJob, limits: Limits) -> Outcome:
    started = time.monotonic()
    try:
        return processes.run(build_series, job, limits=limits)
    except LostError as error:
        reason, detail = error.reason, error.detail
    except MemoryError as error:  # also for the record of it
        reason, detail = reason_of(error)
    return Outcome(job.source.uid, "failed", reason, detail, round(time.monotonic() - started, 3))
