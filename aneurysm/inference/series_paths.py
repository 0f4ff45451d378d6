"""A path that a user names -> the series at it: DICOM files or folders, cached volumes, whole caches."""

from __future__ import annotations

from pathlib import Path

from aneurysm.cache.catalog import Cache
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.reader import CachedVolume
from aneurysm.dicom.header import NotDicomError, read_header
from aneurysm.dicom.scan import SeriesSource, find_series, hashed_name, safe_source
from aneurysm.errors import DataError, UsageError
from aneurysm.objects.store import ObjectStore
from aneurysm.objects.stored_data import StoredData
from aneurysm.objects.url import checked_url, is_url

SeriesPath = SeriesSource | CachedVolume


def find_paths(
    path: str | Path, *, local_cache: str | Path | None = None, local_cache_gb: float | None = None
) -> list[SeriesPath]:
    """
    Return the series at ``path``, which may be a URL of anything but a single file.

    It may be a DICOM file of several frames, a folder of DICOM files, a folder of such folders, a data set in the RSNA
    layout, a cached volume (``CACHE/volumes/<uid>.zarr``), or a cache.

    Raises
    ------
    UsageError
        There is no such path.
    DataError
        There is no series at it.
    CacheError
        The cache's tables are damaged.
    StoreError
        The object store can't be read.
    """
    if is_url(path):
        return _stored_paths(str(path), local_cache, local_cache_gb)
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no {path}")
    if path.is_file():
        try:
            uid = str(read_header(path).get("SeriesInstanceUID", "")) or hashed_name("file", path.name)
        except NotDicomError as error:
            raise DataError(f"{path} is no DICOM file: {error}") from error
        return [safe_source(uid, files=[str(path)])]
    if (path / "zarr.json").is_file():
        path = path.absolute()
        return [CachedVolume(path.parent.parent, path.name.removesuffix(".zarr"))]
    if CacheLayout(path).spec.is_file():
        return list(Cache.open(path))
    return list(find_series(path).sources)


def _stored_paths(url: str, local_cache: str | Path | None, local_cache_gb: float | None) -> list[SeriesPath]:
    url = checked_url(url)
    root, _, name = url.rpartition("/volumes/")
    if root and name.endswith(".zarr") and "/" not in name:
        cache = Cache.open(root, local_cache=local_cache, local_cache_gb=local_cache_gb)
        return [cache.volume(name.removesuffix(".zarr"))]
    if ObjectStore(url).exists("spec.toml"):
        return list(Cache.open(url, local_cache=local_cache, local_cache_gb=local_cache_gb))
    return list(StoredData(url).find_series(1).sources)
