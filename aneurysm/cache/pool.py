"""Jobs -> outcomes, in processes: joblib's pool, made to survive the death of a worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

import joblib
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.publish import abandoned
from aneurysm.cache.series import Outcome, SeriesJob, build_series, write_record
from aneurysm.errors import Reason
from aneurysm.threads import limit_threads

_KILLED: Final = "the process that built it died twice: out of memory, or a crash in a decoder. Try fewer workers"


def run_jobs(
    jobs: Sequence[SeriesJob], workers: int, layout: CacheLayout, *, isolated: bool = False
) -> Iterator[Outcome]:
    """
    Build the series of ``jobs``, in this order as far as ``workers`` allow; yield outcomes as they come.

    A single worker is this very process, unless ``isolated``.

    A dead worker takes joblib's whole pool with it. Which series were being built is known from what they left
    behind; each of those is tried again alone, so that the one that kills is found, and costs no other.
    """
    pending = {job.source.uid: job for job in jobs}
    busy: list[SeriesJob] = []
    while pending:
        try:
            for outcome in _in_processes(list(pending.values()), workers, isolated):
                job = pending.pop(outcome.uid)
                if outcome.status == "busy":
                    busy.append(job)
                else:
                    yield outcome
        except BrokenProcessPool:
            suspects = [pending.pop(uid) for uid in abandoned(layout) if uid in pending]
            for job in suspects or [pending.pop(next(iter(pending)))]:
                yield _alone(job, layout)
    # Another run was at these. It may have died since, or left them: by now they are done, or nobody's.
    for job in busy:
        yield from _in_processes([job], 1, isolated)


def _in_processes(jobs: Sequence[SeriesJob], workers: int, isolated: bool) -> Iterator[Outcome]:
    if workers == 1 and isolated:
        # joblib runs a single job in this very process. The pool is one of our own: joblib's would be left changed.
        with ProcessPoolExecutor(max_workers=1, initializer=start_worker, initargs=(os.getpid(),)) as pool:
            for job in jobs:
                yield pool.submit(build_series, job).result()
        return
    if workers == 1:
        limit_threads(1)
        for job in jobs:
            yield build_series(job)
        return
    parallel = joblib.Parallel(
        n_jobs=workers,
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch=2 * workers,
        backend="loky",
        initializer=start_worker,
        initargs=(os.getpid(),),
    )
    yield from parallel(joblib.delayed(build_series)(job) for job in jobs)


def _alone(job: SeriesJob, layout: CacheLayout) -> Outcome:
    try:
        return next(_in_processes([job], 1, isolated=True))
    except BrokenProcessPool:
        uid = job.source.uid
        status = write_record(layout, job.spec, uid, Reason.WORKER_KILLED, _KILLED, job.notes)
        return Outcome(uid, status, Reason.WORKER_KILLED, _KILLED)


def start_worker(parent: int, threads: int = 1) -> None:
    """Prepare this worker before its first job. ``parent`` is told: it may be dead by now, and getppid() another's."""
    # Ctrl-C reaches every process of the terminal's group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_threads(threads)

    def watch() -> None:
        # A killed parent can't end its workers: they would wait for the next job for minutes.
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
