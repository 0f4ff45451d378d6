"""Jobs -> outcomes, by an engine: this process, processes beside it, or a Dask cluster (dask_engine.py).

Whatever builds, a series that takes its process with it, or more time or memory than it may, costs no other: it is put
aside, tried once more when all others are done, with nothing beside it, and then recorded.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Final, Protocol

import joblib

from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.opening import is_done
from aneurysm.cache.series import Outcome, SeriesJob, build_series, write_record
from aneurysm.cache.supervisor import Children, Limits, LostError
from aneurysm.errors import Reason
from aneurysm.threads import limit_threads

_TRIED_AGAIN: Final = frozenset({Reason.WORKER_KILLED, Reason.OUT_OF_MEMORY, Reason.TIMED_OUT})
"""Reasons that may lie in what else was going on at the time."""


class Engine(Protocol):
    """What builds series. One whose process was lost comes back as a failed outcome, without a record in the cache."""

    def build(self, jobs: Sequence[SeriesJob]) -> Iterator[Outcome]:
        """Build the series of ``jobs``, the first ones first; yield outcomes as they come."""


def run_jobs(jobs: Sequence[SeriesJob], engine: Engine, layout: CacheLayout) -> Generator[Outcome]:
    """Build the series of ``jobs``, in this order as far as the engine allows; yield outcomes as they come."""
    by_uid = {job.source.uid: job for job in jobs}
    lost: list[Outcome] = []
    busy: list[SeriesJob] = []
    for outcome in engine.build(jobs):
        if outcome.status == "busy":
            busy.append(replace(by_uid[outcome.uid], insist=True))
        elif outcome.reason in _TRIED_AGAIN:
            lost.append(outcome)
        else:
            yield outcome
    # Another run was at these, of two at once at every other one: by now they are done, or nobody's, if it died.
    left = []
    for job in busy:
        if not job.overwrite and is_done(layout, job.source.uid):  # no process has to start to see that
            yield Outcome(job.source.uid, "skipped")
        else:
            left.append(job)
    for outcome in engine.build(left) if left else ():
        if outcome.reason in _TRIED_AGAIN:
            lost.append(outcome)
        else:
            yield outcome
    for first in lost:
        yield _alone(by_uid[first.uid], first, engine, layout)


def _alone(job: SeriesJob, first: Outcome, engine: Engine, layout: CacheLayout) -> Outcome:
    layout.record(first.uid).unlink(missing_ok=True)  # of a MemoryError, which the process lived to record
    (last,) = engine.build([replace(job, retry=True, insist=True)])
    if last.status == "busy":
        last = first  # the lost process hangs in the kernel, and holds the claim still
    if last.reason not in _TRIED_AGAIN:
        return last
    detail = f"{last.detail} (tried twice, the second time alone)"
    status = write_record(layout, job.spec, job.source.uid, Reason(last.reason), detail, job.notes)
    return replace(last, status=status, detail=detail)


class InProcess:
    """The process that asks, one series after the other: what is least to start, and can be debugged."""

    def build(self, jobs: Sequence[SeriesJob]) -> Iterator[Outcome]:
        """Build the series of ``jobs``."""
        limit_threads(1)
        for job in jobs:
            yield build_series(job)


class Local:
    """``workers`` processes of this machine, each driven by a thread of joblib's, within ``limits`` by series."""

    def __init__(self, workers: int, limits: Limits) -> None:
        self._workers = workers
        self._limits = limits

    def build(self, jobs: Sequence[SeriesJob]) -> Iterator[Outcome]:
        """Build the series of ``jobs``; the processes end with the generator."""
        parallel = joblib.Parallel(
            n_jobs=max(1, min(self._workers, len(jobs))),
            backend="threading",
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch=2 * self._workers,
        )
        with Children() as children:
            outcomes = parallel(joblib.delayed(build_in_child)(children, job, self._limits) for job in jobs)
            try:
                for outcome in outcomes:  # noqa: UP028 - `yield from` would close it, and warn, before we can
                    yield outcome
            except GeneratorExit:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # joblib's: that there are results nobody wants
                    outcomes.close()
                raise


def build_in_child(children: Children, job: SeriesJob, limits: Limits) -> Outcome:
    """
    Build one series in one of ``children``; say of one that is lost why.

    Raises
    ------
    NoSpaceError, CacheError
        As `build_series`.
    StoppedError
        The children were stopped.
    """
    started = time.monotonic()
    try:
        return children.run(build_series, job, limits=limits)
    except LostError as error:
        return Outcome(job.source.uid, "failed", error.reason, error.detail, round(time.monotonic() - started, 3))
