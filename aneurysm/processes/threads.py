"""CPUs that may be used, the one place that caps the threads of ITK, Blosc, BLAS and torch, and maps in threads."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_LOOKS_AT_ONCE: Final = 16
_BATCHES_AHEAD: Final = 64
_BLAS_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def single_threaded() -> dict[str, str]:
    """Return the environment in which the numerical libraries of a new process start one thread each."""
    return dict.fromkeys(_BLAS_VARIABLES, "1")


def limit_threads(n: int) -> None:
    """
    Let each numerical library of this process use at most ``n`` threads.

    32 workers that each start a thread per core fight over the caches and finish later than 32 single threads.
    Call it first thing in a worker: the environment variables work only on libraries that are not loaded yet; the
    libraries that are loaded already are set directly.
    """
    for name in _BLAS_VARIABLES:
        os.environ[name] = str(n)
    if (itk := sys.modules.get("SimpleITK")) is not None:
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(n)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(n)

    from numcodecs import blosc

    blosc.set_nthreads(n)
    # None would let Blosc decide by thread, and use its global, fork-unsafe context from the main one.
    blosc.use_threads = n > 1


def usable_cpus() -> int:
    """Return how many CPUs this process may use, by affinity, container quota or Slurm, whatever the host has."""
    # Costs a tenth of a second to import, and is not wanted where patches are read.
    import joblib

    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    # Not every Slurm binds a task to the CPUs that it was given.
    return min(int(joblib.cpu_count()), max(int(slurm), 1) if slurm.isdecimal() else sys.maxsize)


def map_io(items: Sequence[_In], look: Callable[[_In], _Out], *, batch: int = 64) -> Iterator[_Out]:
    """
    Yield ``look(item)`` of each item, in order, several at a time: for folders and small files.

    On a network disk that is waiting and nothing else; on one's own it costs some ten microseconds an item more, if
    a thread takes ``batch`` of them at a time. Few batches wait to be taken: of millions of items that is all memory.
    """

    def look_at_batch(first: int) -> list[_Out]:
        return [look(item) for item in items[first : first + batch]]

    batches = range(0, len(items), batch)
    for results in ahead(look_at_batch, batches, _LOOKS_AT_ONCE, at_most=_BATCHES_AHEAD):
        yield from results


def ahead(
    work: Callable[[_In], _Out],
    items: Iterable[_In],
    threads: int,
    end: Callable[[], None] = lambda: None,
    *,
    at_most: int | None = None,
) -> Iterator[_Out]:
    """
    Yield ``work(item)`` for each item, in order; ``threads`` results are in work while the caller has the one before.

    Where one may take much longer than others, ``at_most`` results, in work or waiting for it, keep all threads busy.
    Reading and decoding let go of Python's lock, so threads do, and what they made needs no copy. ``items`` is
    iterated in the caller's thread. What ``work`` raises is raised when its turn comes. ``end`` is called at the end,
    also an early one, before threads that are still at work are waited for.
    """
    queue: deque[Future[_Out]] = deque()
    with ThreadPoolExecutor(threads, "read-ahead") as pool:
        try:
            for item in items:
                queue.append(pool.submit(work, item))
                if len(queue) > (at_most or threads):
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()
            end()
