"""in_batches(): items -> answers, by processes that may die; what takes its process with it is known, and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

import joblib

from aneurysm.cache.supervisor import NO_LIMITS, Children, Limits, LostError

In = TypeVar("In")
Out = TypeVar("Out")


def in_batches(
    function: Callable[[Sequence[In]], list[Out]],
    items: Sequence[In],
    size: int,
    workers: int,
    lost: Callable[[In, LostError], Out],
    limits: Limits = NO_LIMITS,
    *,
    isolated: bool = False,
) -> Iterator[Out]:
    """
    Yield for each of ``items`` what ``function`` answers, in order; it gets ``size`` of them at once.

    One item that kills its process, or with it takes more than ``limits``, is answered by ``lost``. With one worker and
    no limits there is no process but this one, unless ``isolated``.
    """
    if not items:
        return
    batches = [items[i : i + size] for i in range(0, len(items), size)]
    n_jobs = min(workers, len(batches))
    if n_jobs <= 1 and limits == NO_LIMITS and not isolated:
        for batch in batches:
            yield from function(batch)
        return

    def answers(batch: Sequence[In]) -> list[Out]:
        try:
            return children.run(function, batch, limits=limits)
        except LostError as error:
            if len(batch) == 1:
                return [lost(batch[0], error)]
            return [answer for item in batch for answer in answers([item])]

    with Children() as children:
        parallel = joblib.Parallel(n_jobs, backend="threading", return_as="generator")
        yield from chain.from_iterable(parallel(joblib.delayed(answers)(batch) for batch in batches))
