"""Files that are there whole or not at all, whatever is killed meanwhile, and full disks."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from aneurysm.errors import NoSpaceError
from aneurysm.processes.locks import is_locked, lock_file
from aneurysm.processes.shared_folder import make_folder, share

_TEMPORARY: Final = ".tmp"
TRIES: Final = 20
"""Attempts at a file that others remove at the same time."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def sweep_temporaries(folder: Path, names: str = "*") -> None:
    """Remove what processes that are gone began to write in ``folder``, of files of these ``names``, a glob pattern."""
    for temporary in folder.glob(f".{names}.{'[0-9a-f]' * 8}{_TEMPORARY}"):
        if not is_locked(temporary):
            with suppress(PermissionError):  # another user's, in a folder that is not shared
                temporary.unlink(missing_ok=True)


@contextmanager
def replaced_file(
    path: Path, mode: int = 0o666, *, beside: Path | None = None, lasting: bool = True
) -> Iterator[BinaryIO]:
    """
    Yield a file to write to; at the end of the block it is flushed, and takes the place of ``path``.

    At every moment either the old or the new one is there, whole. If the block ends by an error, the old one is. Its
    folder must be there. A sweep (`sweep_temporaries`) leaves it alone as long as this process lives. It is written in
    the same folder, or in that of ``beside``, a path on the same disk. What is not ``lasting`` is not flushed: after a
    power failure it may be damaged.
    """
    temporary, file = _begin_beside(path if beside is None else beside, mode)
    try:
        with file:
            yield file
            file.flush()
            if lasting:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # what went wrong before is what counts
            temporary.unlink(missing_ok=True)
    if lasting:
        flush_folder(path.parent)


def _begin_beside(path: Path, mode: int) -> tuple[Path, BinaryIO]:
    """Return a new file of a name that nobody else uses, on any node, with the lock that says it has an owner."""
    for _ in range(TRIES):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            lock_file(descriptor)
            with suppress(FileNotFoundError):  # swept between its making and its lock
                share(temporary, path.parent)
                temporary.stat()
                return temporary, os.fdopen(descriptor, "wb")
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "files are removed as soon as they are made", str(path.parent))


def write_atomically(path: Path, content: str | bytes, *, lasting: bool = True) -> None:
    """
    Write a file, text as UTF-8, so that at every moment either the old or the new one is there, whole.

    Its folder is made if it is not there, but not the one above it. What is not ``lasting`` is not flushed; see
    `replaced_file`.
    """
    make_folder(path.parent)
    for attempt in range(1, TRIES + 1):
        try:
            with replaced_file(path, lasting=lasting) as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
        except FileNotFoundError:  # where there are no locks, another run's sweep may have taken it
            if attempt == TRIES or not path.parent.is_dir():
                raise
        else:
            return


def write_once(path: Path, content: str, mode: int = 0o666) -> bool:
    """Write a file, whole, unless it is there, and return True: of several who do so at once the first counts."""
    make_folder(path.parent)
    written = False
    for _ in range(TRIES):
        if path.exists():
            break
        temporary, file = _begin_beside(path, mode)
        try:
            with file:
                file.write(content.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
                with suppress(FileExistsError):  # another was faster
                    os.link(temporary, path)
                    written = True
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    else:
        raise FileExistsError(errno.EEXIST, "it is there, but can't be reached: is it a broken link?", str(path))
    flush_folder(path.parent)
    return written


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write ``record`` as JSON, atomically."""
    write_atomically(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


@contextmanager
def raise_no_space(folder: Path, advice: str) -> Iterator[None]:
    """Turn the operating system's error of a full disk into a `NoSpaceError` with ``advice`` on what to do."""
    try:
        yield
    except NoSpaceError:
        raise
    except Exception as error:  # libraries wrap it, and cleaning up may fail over it
        if not is_disk_full(error):
            raise
        raise NoSpaceError(f"the disk of {folder} is full. {advice}") from error


def is_disk_full(error: BaseException) -> bool:
    """Return True if ``error``, or what caused it, is a full disk, quota or file size limit."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NoSpaceError) or (isinstance(seen, OSError) and seen.errno in _FULL):
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
        flush_folder(Path(root))


def flush_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to the disk: what was renamed into it stays there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tree_files(folder: str | Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield (path relative to ``folder``, bytes) of all files in it and below, each folder's names in order."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda e: e.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from tree_files(entry.path, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield prefix + entry.name, entry.stat().st_size


def tree_bytes(folder: Path) -> int:
    """Return the size of all files in ``folder`` and below."""
    return sum(size for _, size in tree_files(folder))
