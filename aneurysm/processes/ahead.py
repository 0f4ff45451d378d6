"""ahead(): a map in threads that keeps its order and runs only so far ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int, end: Callable[[], None] = lambda: None
) -> Iterator[_Result]:
    """
    Yield ``work(item)`` for each item, in order; ``threads`` results are in work while the caller has the one before.

    Reading and decoding let go of Python's lock, so threads do, and what they made needs no copy. ``items`` is
    iterated in the caller's thread. What ``work`` raises is raised when its turn comes. ``end`` is called at the end,
    also an early one, before threads that are still at work are waited for.
    """
    queue: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads, "read-ahead") as pool:
        try:
            for item in items:
                queue.append(pool.submit(work, item))
                if len(queue) > threads:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()
            end()
