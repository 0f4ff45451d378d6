"""An error of the operating system on writing to a cache -> ours, which ends the run and says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from aneurysm.errors import AneurysmError, CacheError
from aneurysm.processes.files import is_disk_full, raise_no_space
from aneurysm.processes.shared_folder import describe_denial

_FULL: Final = "What is cached is complete; free some space and run the same command again to go on"


@contextmanager
def translate_write_errors(cache: Path) -> Iterator[None]:
    """
    Turn an OSError on work in ``cache`` into `NoSpaceError` or `CacheError`.

    Raises
    ------
    NoSpaceError
        The disk is full.
    CacheError
        The file system has turned read-only, or whatever else keeps us from writing.
    """
    try:
        with raise_no_space(cache, _FULL):
            yield
    except AneurysmError:
        raise
    except Exception as error:
        if not (isinstance(error, OSError) or is_read_only(error)):
            raise
        if is_read_only(error):
            what = "its file system has become read-only"
        else:
            what = describe_denial(error) if isinstance(error, PermissionError) else str(error)
        raise CacheError(
            f"the cache {cache} can't be written: {what}. What is cached is complete; when this is mended, run the "
            "same command again to go on"
        ) from error


def ends_the_run(error: BaseException) -> bool:
    """Return True if ``error``, or what caused it, is none of one series: a full disk, or one that can't be written."""
    return is_disk_full(error) or is_read_only(error)


def is_read_only(error: BaseException) -> bool:
    """Return True if ``error``, or what caused it, is a read-only file system: the one that is written to."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno == errno.EROFS:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
