"""FetchAhead: volumes that are drawn next are copied here before they are read.

The draws of an epoch are known before it begins. Threads go through them in their order, and keep so far ahead that
what is fetched for later drives out nothing that comes before it. What they have not fetched yet the reader fetches
itself, and what somebody is fetching it waits for.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from aneurysm.cache.local_copy import RemoteVolume
from aneurysm.errors import AneurysmError, CacheError

_THREADS: Final = 4
_SHARE: Final = 0.8
"""Of the local copy; the rest is for what readers fetch out of turn."""
_STEPS: Final = 2000
"""It goes no further ahead than this many steps: where few volumes are drawn from, it would go on for ever."""
_log: Final = logging.getLogger(__name__)


class FetchAhead:
    """
    Fetches volumes in threads, until it is closed.

    Parameters
    ----------
    volumes
        By what ``walk`` calls them.
    walk
        Steps, rising, with the volumes that each needs.
    ranks
        So many processes share the local copy.
    start
        The first step of ``walk``.
    """

    def __init__(
        self, volumes: Mapping[int, RemoteVolume], walk: Iterator[tuple[int, Sequence[int]]], ranks: int, *, start: int
    ) -> None:
        self.start = start
        self._volumes, self._walk = volumes, walk
        first = next(iter(volumes.values()), None)
        self._budget = 0 if first is None else _SHARE * first.copy.most_bytes / ranks
        self._window: dict[int, int] = {}
        """The last step that needs a volume, of those on the way from the present step to the one that was reached."""
        self._bytes = 0
        self._due: deque[int] = deque()
        self._next_step = next(walk, None)
        self._at = start
        self._ended = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name=f"fetch-ahead-{i}") for i in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def reached(self, step: int) -> None:
        """Note that all before ``step`` is done."""
        with self._changed:
            self._at = step
            for volume in [v for v, last in self._window.items() if last < step]:
                del self._window[volume]
                self._bytes -= self._volumes[volume].size
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads; what they are fetching is fetched, or given up when the process ends."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _work(self) -> None:
        while (volume := self._take()) is not None:
            try:
                self._volumes[volume].fetch()
            except CacheError:
                continue  # whoever reads it says so
            except (AneurysmError, OSError) as error:
                _log.warning("volumes are no longer fetched ahead: %s", error)
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()

    def _take(self) -> int | None:
        """Return the next volume to fetch, waiting for its time; None at the end."""
        with self._changed:
            while not self._ended:
                if self._due:
                    return self._due.popleft()
                if self._next_step is None:
                    return None
                if not self._advance(*self._next_step):
                    self._changed.wait()
        return None

    def _advance(self, step: int, volumes: Sequence[int]) -> bool:
        """Take what ``step`` needs into the window; say whether there was room for it."""
        new = [v for v in dict.fromkeys(volumes) if v not in self._window]
        needed = sum(self._volumes[v].size for v in new)
        if step < self._at:
            self._next_step = next(self._walk, None)  # overtaken
            return True
        if self._bytes + needed > self._budget or step - self._at > _STEPS:
            return False
        for volume in volumes:
            self._window[volume] = step
        self._bytes += needed
        self._due.extend(new)
        self._next_step = next(self._walk, None)
        return True
