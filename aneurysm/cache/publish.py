"""Claims, flushing and renaming: what makes a folder in volumes/ complete after any kill, however many runs at once.

A series is built in .building/<uid>/ by whoever holds the lock on .building/<uid>.lock. The kernel drops the lock
with its owner, also after kill -9, so work without a lock is work of the dead and may be swept. Finished work is
flushed to the disk, then renamed into place; the first to arrive wins, and the bytes are the same anyway.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aneurysm.cache.layout import CacheLayout
from aneurysm.errors import NoSpaceError

_TEMPORARY = ".tmp"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def claim(layout: CacheLayout, uid: str) -> Iterator[Path | None]:
    """
    Hold the claim on a series; yield its empty folder to build in, or None if another process holds it.

    The folder is gone when the claim is.
    """
    lock = layout.building / f"{uid}.lock"
    folder = layout.building / uid
    descriptor = _lock(lock)
    if descriptor is None:
        yield None
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # While it is still held: whoever waits on this file sees that it is no longer the one at the path.
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _held(path: Path) -> bool:
    """Say whether a process holds the lock on ``path``; writes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock on ``path``, None if another process does."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # the folder was swept in between
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        try:
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its last owner removed it


def sweep(layout: CacheLayout) -> list[str]:
    """Remove the unfinished work of processes that are gone; return whose series it was."""
    for place in (layout.root, layout.rejected):
        for temporary in place.glob(f".*{_TEMPORARY}"):
            if not _held(temporary):
                temporary.unlink(missing_ok=True)
    if not layout.building.is_dir():
        return []
    swept = []
    names = {p.name.removesuffix(".lock") for p in layout.building.iterdir()}
    for uid in sorted(names):
        with claim(layout, uid) as folder:
            if folder is not None:
                swept.append(uid)
    with suppress(OSError):  # another run may be at work
        layout.building.rmdir()
    return swept


def abandoned(layout: CacheLayout) -> list[str]:
    """Return the series in .building/ whose folder nobody holds: what dead processes were at."""
    if not layout.building.is_dir():
        return []
    folders = sorted(p.name for p in layout.building.iterdir() if p.is_dir())
    return [uid for uid in folders if not _held(layout.building / f"{uid}.lock")]


def publish(built: Path, final: Path) -> bool:
    """Flush the folder ``built`` and rename it to ``final``, on the same disk; False if that is there already."""
    flush_tree(built)
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        built.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    _flush_folder(final.parent)
    return True


def write_atomically(path: Path, content: str) -> None:
    """Write a file so that at every moment either the old or the new one is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        while True:
            with temporary.open("w", encoding="utf-8") as file:
                # The lock tells a sweep that the file has an owner.
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                with suppress(FileNotFoundError):  # swept between its making and its lock: once more
                    temporary.replace(path)
                    break
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write ``record`` as JSON, atomically."""
    write_atomically(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


@contextmanager
def no_space_told(folder: Path, advice: str) -> Iterator[None]:
    """Turn the operating system's error of a full disk into a `NoSpaceError` with ``advice`` on what to do."""
    try:
        yield
    except NoSpaceError:
        raise
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise NoSpaceError(f"the disk of {folder} is full. {advice}") from error


def is_disk_full(error: BaseException) -> bool:
    """Say whether ``error``, or what caused it, is a full disk, quota or file size limit."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to the disk, so that a rename can't outlive its content."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)  # noqa: PTH118 - os.walk gives strings
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _flush_folder(Path(root))


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
