"""prefetch(): volumes of a cache in their order; of one in an object store the next ones are on their way already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from aneurysm.cache.cache import Cache
from aneurysm.cache.volume import CachedVolume
from aneurysm.errors import CacheError
from aneurysm.processes.ahead import ahead

_AHEAD: Final = 4


def prefetch(cache: Cache, volumes: Iterable[int]) -> Iterator[CachedVolume]:
    """
    Yield the volumes of these indices.

    Raises
    ------
    StoreError
        The object store can't be read. What is wrong with one volume shows when it is read.
    """
    chosen = (cache[i] for i in volumes)
    if not cache.stored:
        yield from chosen
        return
    yield from ahead(_fetch, chosen, _AHEAD)


def _fetch(volume: CachedVolume) -> CachedVolume:
    if volume.stored is not None:
        with suppress(CacheError):
            volume.stored.fetch()
    return volume
