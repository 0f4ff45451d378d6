"""read_ahead(): series paths -> series in memory, in order, while the caller is at those before.

DICOM is read in processes of its own, as precaching does it: a decoder that crashes, the kernel's out-of-memory killer,
or a file that hangs beyond the limit of time then costs one series and not the command. Cached volumes, whose decoder
checks what it is given, are read in this process, and need no copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from aneurysm.cache.volume import CachedVolume
from aneurysm.errors import SpecMismatchError, StoreError, reason_of
from aneurysm.inference.failure import Failure, failure
from aneurysm.inference.read_series import ReadSeries, read_path
from aneurysm.inference.series_paths import SeriesPath
from aneurysm.processes.ahead import ahead
from aneurysm.processes.children import NO_LIMITS, Children, Limits, LostError
from aneurysm.spec import CacheSpec


def read_ahead(
    paths: Iterable[SeriesPath], spec: CacheSpec, workers: int, limits: Limits = NO_LIMITS
) -> Iterator[ReadSeries | Failure]:
    """
    Yield each series, or why it can't be read; ``workers`` are in work while the caller has the one before.

    A DICOM series that takes its process with it, or more than ``limits``, is tried once more.

    Raises
    ------
    SpecMismatchError
        A cached volume is of another spec.
    StoreError
        An object store fails.
    """
    children = Children()

    def read(path: SeriesPath) -> ReadSeries | Failure:
        if isinstance(path, CachedVolume):
            return read_or_fail(path, spec)
        try:
            return children.run(read_or_fail, path, spec, limits=limits)
        except LostError:
            # In all likelihood for what it is, but it may have been for what else was going on.
            try:
                return children.run(read_or_fail, path, spec, limits=limits)
            except LostError as error:
                return failure(path.uid, error.reason, f"{error.detail} (tried twice)")

    return ahead(read, paths, workers, end=children.stop)


def read_or_fail(path: SeriesPath, spec: CacheSpec) -> ReadSeries | Failure:
    """
    Read one series; whatever is wrong with it comes back as a `Failure`.

    Raises
    ------
    SpecMismatchError
        A cached volume is of another spec: that is wrong with all of them.
    StoreError
        An object store fails: likewise.
    """
    try:
        return read_path(path, spec)
    except (SpecMismatchError, StoreError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one series, the others go on
        return failure(path.uid, *reason_of(error))
