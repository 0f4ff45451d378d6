"""map_batches(): items -> answers, by processes that may die; what takes its process with it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import TypeVar

import joblib

from aneurysm.errors import Reason
from aneurysm.processes.children import NO_LIMITS, Limits, LostError, Runner, runner

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def map_batches(
    function: Callable[[Sequence[_In]], list[_Out]],
    items: Sequence[_In],
    size: int,
    workers: int,
    lost: Callable[[_In, LostError], _Out],
    limits: Limits = NO_LIMITS,
    processes: Runner | None = None,
) -> Iterator[_Out]:
    """
    Yield for each of ``items`` what ``function`` answers, in order; it gets ``size`` of them at once.

    One item that kills its process, or with it takes more than ``limits``, is answered by ``lost``. ``processes`` are
    those to run in; if none are given, ``workers`` are started. 0 workers are this process alone.
    """
    if not items:
        return
    starts = range(0, len(items), size)

    def answers(batch: Sequence[_In]) -> list[_Out]:
        try:
            return run(function, batch, limits=limits)
        except (LostError, MemoryError) as error:
            if len(batch) == 1:
                return [lost(batch[0], error if isinstance(error, LostError) else _too_much(limits))]
            return [answer for item in batch for answer in answers([item])]

    with runner(workers) if processes is None else nullcontext(processes) as chosen:
        run = chosen.run
        parallel = joblib.Parallel(max(1, min(workers, len(starts))), backend="threading", return_as="generator")
        yield from chain.from_iterable(parallel(joblib.delayed(answers)(items[i : i + size]) for i in starts))


def _too_much(limits: Limits) -> LostError:
    limit = "there is" if limits.memory_mb is None else f"{limits.memory_mb} MB, the limit of memory"
    return LostError(Reason.OUT_OF_MEMORY, f"more memory than {limit}")
