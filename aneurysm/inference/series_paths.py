"""A path that a user names -> the series at it: DICOM files or folders, cached volumes, whole caches.

A series without a SeriesInstanceUID bears the name of its folder or file if that is a UID, as in the RSNA test set.
Else its name is made of where it lies: of the whole path, for `a/scan` and `b/scan` are two, whichever is named.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from aneurysm.cache.cache import open_cache
from aneurysm.cache.layout import VOLUME_ENDING, CacheLayout, volume_key
from aneurysm.cache.volume import CachedVolume
from aneurysm.dicom.frame import UID
from aneurysm.dicom.header import NotDicomError, read_header
from aneurysm.errors import DataError, UsageError
from aneurysm.processes.children import NO_LIMITS, Children, LostError
from aneurysm.rawdata.bucket import BucketSource, DataBucket
from aneurysm.rawdata.folder import (
    SCAN_MEMORY_MB,
    SeriesSource,
    find_series,
    hashed_name,
    safe_source,
    translate_read_errors,
)
from aneurysm.remote.client import ObjectStore
from aneurysm.remote.url import checked_url, is_url

SeriesPath = SeriesSource | CachedVolume
_MADE_UP: Final = re.compile(r"(folder|file)-[0-9a-f]{16}")


def find_paths(
    path: str | Path, *, local_cache: str | Path | None = None, local_cache_gb: float | None = None
) -> list[SeriesPath]:
    """
    Return the series at ``path``, which may be a URL of anything but a single file.

    It may be a DICOM file of several frames, a folder of DICOM files, a folder of such folders, a data set in the RSNA
    layout, a cached volume (``CACHE/volumes/<hh>/<uid>.zarr``), or a cache.

    Raises
    ------
    UsageError
        There is no such path, or it is a volume that was taken out of its cache.
    DataError
        There is no series at it, or it can't be read.
    CacheError
        The cache's tables are damaged.
    StoreError
        The object store can't be read.
    """
    if is_url(path):
        return _stored_paths(str(path), local_cache, local_cache_gb)
    with translate_read_errors(path):
        return _local_paths(Path(path).absolute())


def name_by_place(path: str | Path) -> str:
    """Return what a series at this path is called, should nothing else say it."""
    place = str(path) if is_url(path) else os.path.realpath(path)
    name = Path(place).name
    return name if UID.fullmatch(name) else hashed_name("folder", place)


def unnamed_place(path: SeriesPath) -> str | None:
    """Return the path of a series whose name is made of that; None if it has a name of its own."""
    made_up = _MADE_UP.fullmatch(path.uid)
    if isinstance(path, CachedVolume) or made_up is None:
        return None
    if isinstance(path, BucketSource):
        return f"{path.url}/{path.keys[0]}".rpartition("/")[0] if path.keys else None
    if path.folder is not None:  # of the RSNA layout, which may happen to be called so
        return None if path.folder.name == path.uid else os.path.realpath(path.folder)
    file = path.files[0]
    return os.path.realpath(file if made_up[1] == "file" else Path(file).parent)


def is_same(one: SeriesPath, other: SeriesPath) -> bool:
    """Return True if two paths of one UID are the same files or the same volume."""
    return _content(one) == _content(other)


def _content(path: SeriesPath) -> object:
    if isinstance(path, CachedVolume):
        return path.name if path.remote is not None else os.path.realpath(path.name)
    if isinstance(path, BucketSource):
        return path
    return sorted(os.path.realpath(file) for file in path.list_files())


def _local_paths(path: Path) -> list[SeriesPath]:
    if not path.exists():
        raise UsageError(f"there is no {path}")
    if path.is_file():
        return [_file(path)]
    if (path / "zarr.json").is_file():
        root, uid = path.parent.parent.parent, path.name.removesuffix(VOLUME_ENDING)
        if path != CacheLayout(root).volume(uid):
            raise UsageError(f"{path} is no volume in its cache: name it as CACHE/{volume_key(uid)}")
        return [CachedVolume(root, uid)]
    if CacheLayout(path).spec.is_file():
        return list(open_cache(path))
    return [_named_by_place(source) for source in find_series(path).sources]


def _file(path: Path) -> SeriesSource:
    with Children() as children:
        try:
            values = children.run(_header_values, path, limits=NO_LIMITS.at_most(SCAN_MEMORY_MB))
        except NotDicomError as error:
            raise UsageError(f"{path} is a file, and no DICOM: name the folder of a series") from error
        except (LostError, MemoryError) as error:
            raise DataError(f"the header of {path} can't be read: {error}") from error
    # A file of several frames may lack their number, but not have one position for all.
    if int(values.get("NumberOfFrames", 1) or 1) <= 1 and "ImagePositionPatient" in values:
        raise UsageError(f"{path} is one image of a series: name the folder that holds all of them")
    uid = str(values.get("SeriesInstanceUID", ""))
    if not uid:
        uid = path.stem if UID.fullmatch(path.stem) else hashed_name("file", os.path.realpath(path))
    return safe_source(uid, files=[str(path)])


def _header_values(path: Path) -> dict[str, Any]:
    return read_header(path).values


def _named_by_place(source: SeriesSource) -> SeriesSource:
    """Name a series without a UID by its whole path; a scan does so by its path below the folder that is scanned."""
    place = unnamed_place(source)
    return source if place is None else replace(source, uid=hashed_name("folder", place))


def _stored_paths(url: str, local_cache: str | Path | None, local_cache_gb: float | None) -> list[SeriesPath]:
    url = checked_url(url)
    uid = url.rpartition("/")[2].removesuffix(VOLUME_ENDING)
    root = url.removesuffix(f"/{volume_key(uid)}")
    if root != url:
        cache = open_cache(root, local_cache=local_cache, local_cache_gb=local_cache_gb)
        return [cache.volume(uid)]
    if ObjectStore(url).exists("spec.toml"):
        return list(open_cache(url, local_cache=local_cache, local_cache_gb=local_cache_gb))
    return [_named_by_place(source) for source in DataBucket(url).find_series(1).sources]
