"""Locks on files, which the kernel drops with the process that holds them, also after kill -9.

A lock's file may be removed by its holder, and by nobody else. Whoever then gets the lock on the removed file sees
that it is no longer the one at the path, and takes that one. Some file systems of clusters have no locks, or none that
reach other nodes. There everybody gets each lock that is not ``strict``: what it guards must be safe without it, and
only better with.

A lock's file holds nothing. Whoever may write to its folder may write to it, too, whatever the umask of who made it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from aneurysm.errors import UsageError
from aneurysm.processes.shared_folder import make_folder

_TRIES: Final = 40
_PAUSE_S: Final = 0.01
_NO_LOCKS: Final = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})


def lock_file(descriptor: int, *, shared: bool = False, wait: bool = False, strict: bool = False) -> bool:
    """Lock an open file, or say that another process has. Where there are no locks `OSError`, if ``strict``."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if strict or error.errno not in _NO_LOCKS:
            raise
    return True


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock on ``path``, or if that can't be known; writes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    try:
        return not lock_file(descriptor, shared=True)
    finally:
        os.close(descriptor)


def take_lock(path: Path, *, wait: bool = False, strict: bool = False) -> int | None:
    """
    Make ``path`` and its folder if need be, and return a descriptor that holds its lock; None if another process does.

    Raises
    ------
    OSError
        The file can't be made or opened. That of a file or folder which is not there, as in /proc or where a disk was
        taken away, comes after some tries: others may remove both at the moment in which we make them.
    """
    failure: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    for attempt in range(_TRIES):
        time.sleep(_PAUSE_S * min(attempt, 10))
        try:
            make_folder(path.parent)
            descriptor = _open(path)
        except (FileNotFoundError, FileExistsError) as error:
            failure = error
            continue
        try:
            if not lock_file(descriptor, wait=wait, strict=strict):
                os.close(descriptor)
                return None
            with suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last owner removed it
    raise failure


def _open(path: Path) -> int:
    # Not in one step: the kernel may forbid O_CREAT on another user's file in a folder with the sticky bit.
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # which can be locked, but for NFS
    folder = path.parent.stat()
    with suppress(PermissionError):  # a group that we are not in
        os.fchown(descriptor, -1, folder.st_gid)
    writers = folder.st_mode & 0o022
    os.fchmod(descriptor, 0o600 | writers | writers << 1)
    return descriptor


@contextmanager
def locked(path: Path, *, keep: bool = False) -> Iterator[None]:
    """
    Hold the strict lock on ``path``, waiting for it; the file is gone afterwards, unless it is to be kept.

    Raises
    ------
    UsageError
        Its file system has no locks.
    """
    try:
        descriptor = take_lock(path, wait=True, strict=True)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise UsageError(
            f"the file system of {path.parent} has no file locks: name a folder on a local disk"
        ) from error
    try:
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def one_at_a_time(path: Path, patience_s: float = 300.0) -> Iterator[None]:
    """
    Hold the lock on the file ``path``, which must exist; wait for it no longer than ``patience_s``.

    For work that is safe without it, and only better one after the other: a node that hangs with the lock in its hands
    must not stop the others.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS locks only what may be written
    except OSError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + patience_s
        while not lock_file(descriptor) and time.monotonic() < end:
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
