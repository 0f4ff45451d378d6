"""Tables of a cache in an object store -> the same objects as from a local one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from aneurysm.cache.catalog import Cache
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.manifest import parse_document, read_manifest
from aneurysm.errors import CacheError, DamagedCacheError
from aneurysm.objects.local_copy import LocalCopy, StoredVolume
from aneurysm.remote.client import ObjectStore
from aneurysm.remote.scratch import scratch_folder, told_as
from aneurysm.remote.url import checked_url


@contextmanager
def fetched_tables(url: str) -> Iterator[Path]:
    """Yield a folder with spec.toml, manifest.csv and lesions.csv of the cache at ``url``, as far as there are any."""
    url = checked_url(url)
    with scratch_folder() as folder:
        _fetch(url, folder)
        with told_as(folder, url):
            yield folder


def _fetch(url: str, folder: Path) -> None:
    store, layout = ObjectStore(url), CacheLayout(folder)
    tables = (layout.spec, layout.manifest, layout.lesions)
    store.each(lambda path: store.download_if_there(path.name, path), tables)


def read_stored_attributes(url: str, uids: Sequence[str]) -> list[dict[str, Any] | CacheError]:
    """Return what volumes say of themselves, or what is wrong with them; no voxels are brought."""
    store = ObjectStore(url)

    def read(uid: str) -> dict[str, Any] | CacheError:
        key = f"volumes/{uid}.zarr/zarr.json"
        try:
            document = parse_document(store.read(key), f"{url}/{key}")
        except FileNotFoundError:
            return CacheError(f"{url}/{key} is missing")
        except CacheError as error:
            return error
        attributes: dict[str, Any] = document["attributes"]["aneurysm"]
        return attributes

    return store.each(read, uids)


def open_stored(url: str, local_cache: str | Path | None, local_cache_gb: float | None) -> Cache:
    """Open the cache at ``url``, whose volumes are to be copied to ``local_cache``; see `Cache.open`."""
    url = checked_url(url)
    with fetched_tables(url) as folder:
        cache = Cache.of_tables(CacheLayout(folder), partial(_fetch, url, folder))
        # After that, which may have fetched them again.
        rows = {row["series_uid"]: row for row in read_manifest(CacheLayout(folder).manifest)}
        if strange := [uid for uid in rows if "/" in uid or uid.startswith(".")]:
            # It becomes a path on this machine, and came from elsewhere.
            raise DamagedCacheError(f"{url}/manifest.csv is damaged: {strange[0]!a} can't name a volume")
    copy = LocalCopy.of(local_cache, local_cache_gb)
    try:
        stored = {
            uid: StoredVolume(
                url, uid, rows[uid]["voxel_hash"], rows[uid]["annotation_hash"], int(rows[uid]["bytes_out"]), copy
            )
            for uid in cache.uids
        }
    except ValueError as error:
        raise DamagedCacheError(f"{url}/manifest.csv is damaged: {error}. Run aneurysm precache") from error
    for largest in sorted(stored.values(), key=lambda v: v.size)[-1:]:
        largest.check_bound()
    return replace(cache, root=url, voxel_hashes={}, stored=stored)
