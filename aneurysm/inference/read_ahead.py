"""read_ahead(): series paths -> series in memory, in order, while the caller is at those before.

DICOM is read in processes of its own, as precaching does it: a decoder that crashes, or the kernel's out-of-memory
killer, then costs one series and not the command. Cached volumes, whose decoder checks what it is given, are read in
threads, which need no copy.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

from aneurysm.cache.child import start_worker
from aneurysm.cache.reader import CachedVolume
from aneurysm.cache.spec import CacheSpec
from aneurysm.errors import Reason, SpecMismatchError, StoreError
from aneurysm.inference.failure import Failure, failure
from aneurysm.inference.reading import ReadSeries, read_path
from aneurysm.inference.series_paths import SeriesPath
from aneurysm.reasons import reason_of

_KILLED: Final = "the process that read it died twice: out of memory, or a crash in a decoder. Try fewer workers"


def read_ahead(paths: Iterable[SeriesPath], spec: CacheSpec, workers: int) -> Iterator[ReadSeries | Failure]:
    """
    Yield each series, or why it can't be read; ``workers`` are in work while the caller has the one before.

    A process that dies takes those of its fellows with it: what was in work is tried again, each series alone.

    Raises
    ------
    SpecMismatchError
        A cached volume is of another spec.
    """
    with ExitStack() as stack:
        pools = _Pools(spec, workers, stack)
        waiting: deque[tuple[SeriesPath, Future[ReadSeries | Failure]]] = deque()
        for path in paths:
            waiting.append((path, pools.submit(path)))
            if len(waiting) > workers:
                yield pools.result(*waiting.popleft())
        while waiting:
            yield pools.result(*waiting.popleft())


def read_or_fail(path: SeriesPath, spec: CacheSpec) -> ReadSeries | Failure:
    """
    Read one series; whatever is wrong with it comes back as a `Failure`.

    Raises
    ------
    SpecMismatchError
        A cached volume is of another spec: that is wrong with all of them.
    StoreError
        An object store fails: likewise.
    """
    try:
        return read_path(path, spec)
    except (SpecMismatchError, StoreError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one series, the others go on
        return failure(path.uid, *reason_of(error))


class _Pools:
    """The threads and processes, which end with ``stack``."""

    def __init__(self, spec: CacheSpec, workers: int, stack: ExitStack) -> None:
        self._spec, self._workers = spec, workers
        self._threads = stack.enter_context(ThreadPoolExecutor(workers, "read-ahead"))
        self._processes: Any = None
        stack.callback(self._end)

    def submit(self, path: SeriesPath) -> Future[ReadSeries | Failure]:
        if isinstance(path, CachedVolume):
            return self._threads.submit(read_or_fail, path, self._spec)
        if self._processes is None:
            self._processes = _pool(self._workers)
        try:
            found: Future[ReadSeries | Failure] = self._processes.submit(read_or_fail, path, self._spec)
        except BrokenProcessPool:
            self._end()
            return self.submit(path)
        return found

    def result(self, path: SeriesPath, future: Future[ReadSeries | Failure]) -> ReadSeries | Failure:
        try:
            return future.result()
        except BrokenProcessPool:
            return self._alone(path)

    def _alone(self, path: SeriesPath) -> ReadSeries | Failure:
        with _pool(1) as pool:
            try:
                found: ReadSeries | Failure = pool.submit(read_or_fail, path, self._spec).result()
            except BrokenProcessPool:
                return failure(path.uid, Reason.WORKER_KILLED, _KILLED)
        return found

    def _end(self) -> None:
        if self._processes is not None:
            # Not to wait for series that nobody wants any more.
            self._processes.shutdown(wait=True, kill_workers=True)
            self._processes = None


def _pool(workers: int) -> Any:
    return ProcessPoolExecutor(max_workers=workers, initializer=start_worker, initargs=(os.getpid(),))
