"""Stealing: what a task that is done takes of the parts of others, one portion after the other, the longest first.

Claims decide who builds a series, as between any two runs: what somebody has in hand is passed over, and not waited
for. The owner finds a series that was taken busy, or done, as if another run had come.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from aneurysm.cache.folder import cached_series, done_series
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.plan import PlannedSeries
from aneurysm.precaching.publish import is_claimed

PORTION = 256
"""Series that are chosen at once: of all that others have, of whom there may be thousands, no more are kept."""


def portions(
    place: Destination, others: Callable[[], Iterable[PlannedSeries]], *, retry: bool, most: int = PORTION
) -> Iterator[list[PlannedSeries]]:
    """
    Yield what to take of ``others``; what is done is looked up once for each portion, and each series taken once.

    With ``retry`` a record of why there is no volume does not count as done.
    """
    tried: set[str] = set()
    while True:
        place.refresh()
        done = cached_series(place.layout) if retry else done_series(place.layout)
        left = (p for p in others() if p.source.uid not in done and p.source.uid not in tried)
        longest = heapq.nlargest(most, left, key=lambda p: (p.seconds, p.facts.bytes, p.source.uid))
        if not longest:
            return
        tried |= {p.source.uid for p in longest}
        yield [p for p in longest if not is_claimed(place.layout, p.source.uid)]
