"""A path that a user names -> the series at it: DICOM files or folders, cached volumes, whole caches."""

from __future__ import annotations

from pathlib import Path

from aneurysm.cache.catalog import Cache
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.reader import CachedVolume
from aneurysm.dicom.header import NotDicomError, read_header
from aneurysm.dicom.scan import SeriesSource, find_series, safe_source
from aneurysm.errors import DataError, UsageError

SeriesPath = SeriesSource | CachedVolume


def find_paths(path: Path) -> list[SeriesPath]:
    """
    Return the series at ``path``.

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
    """
    if not path.exists():
        raise UsageError(f"there is no {path}")
    if path.is_file():
        try:
            uid = str(read_header(path).get("SeriesInstanceUID", "")) or path.stem
        except NotDicomError as error:
            raise DataError(f"{path} is no DICOM file: {error}") from error
        return [safe_source(uid, files=[str(path)])]
    if (path / "zarr.json").is_file():
        path = path.absolute()
        return [CachedVolume(path.parent.parent, path.name.removesuffix(".zarr"))]
    if CacheLayout(path).spec.is_file():
        return list(Cache.open(path))
    return list(find_series(path).sources)
