"""Claims, flushing and renaming: what makes a folder in volumes/ complete after any kill, however many runs at once.

A series is built by whoever holds the lock on .building/<uid>.lock, in a folder of its own that nobody else ever
uses, .building/<uid>@<node>~<random>, with a lock of its own beside it. The kernel drops locks with their owner, also
after kill -9, so work without a lock is work of the dead and may be swept. Finished work is flushed to the disk, then
renamed into place; the first to arrive wins, and the bytes are the same anyway.

On some cluster file systems (BeeGFS, Lustre with localflock) a lock reaches no further than its node, or there is
none at all. Two nodes may then build one series at once, which costs time and nothing else; and another node's work
that seems to be nobody's is left alone until it is hours old.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from aneurysm.cache.folder import subfolders_in
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.metadata import Record
from aneurysm.processes.files import flush_folder, flush_tree, sweep_temporaries, write_atomically
from aneurysm.processes.locks import is_locked, take_lock
from aneurysm.processes.shared_folder import make_folder, share, share_tree
from aneurysm.processes.threads import map_io

_NODE: Final = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64] or "node"
_FOREIGN_S: Final = 6 * 3600.0
"""So old is another node's work before it counts as abandoned: far longer than any series takes."""


@contextmanager
def claim(layout: CacheLayout, uid: str) -> Iterator[Path | None]:
    """
    Hold the claim on a series; yield its empty folder to build in, or None if another process holds it.

    The folder is gone when the claim is.
    """
    lock = layout.building / f"{uid}.lock"
    descriptor = take_lock(lock)
    if descriptor is None:
        yield None
        return
    folder = layout.building / f"{uid}@{_NODE}~{secrets.token_hex(4)}"
    alive = take_lock(_lock_of(folder))
    try:
        make_folder(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # While they are still held: whoever waits on this file sees that it is no longer the one at the path.
        for path, held in ((_lock_of(folder), alive), (lock, descriptor)):
            path.unlink(missing_ok=True)
            if held is not None:
                os.close(held)


def is_claimed(layout: CacheLayout, uid: str) -> bool:
    """Return True if a process holds the claim on a series."""
    return is_locked(layout.building / f"{uid}.lock")


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def sweep(layout: CacheLayout) -> list[str]:
    """Remove the unfinished work of processes that are gone; return whose series it was."""
    sweep_temporaries(layout.root)
    deque(
        map_io([layout.rejected / name for name in subfolders_in(layout.rejected)], sweep_temporaries, batch=1),
        maxlen=0,
    )
    if not layout.building.is_dir():
        return []
    swept = set()
    for folder in _folders_of_the_dead(layout):
        shutil.rmtree(folder, ignore_errors=True)
        swept.add(_uid_of(folder))
    for path in layout.building.glob("*.lock"):
        with suppress(PermissionError):  # another user's, in a folder that is not shared
            if (descriptor := take_lock(path)) is not None:
                try:
                    if not path.with_suffix("").is_dir():  # else it says whose folder that is
                        path.unlink(missing_ok=True)
                finally:
                    os.close(descriptor)
    with suppress(OSError):  # another run may be at work
        layout.building.rmdir()
    return sorted(swept)


def abandoned(layout: CacheLayout) -> list[str]:
    """Return the series whose unfinished work is nobody's."""
    return sorted({_uid_of(folder) for folder in _folders_of_the_dead(layout)})


def _folders_of_the_dead(layout: CacheLayout) -> list[Path]:
    try:
        folders = sorted(layout.building.iterdir())
    except FileNotFoundError:  # absent, or removed just now by a run that needed it no more
        return []
    return [
        folder
        for folder in folders
        if folder.is_dir() and (_is_ours(folder) or _is_old(folder)) and not is_locked(_lock_of(folder))
    ]


def _uid_of(folder: Path) -> str:
    return folder.name.partition("@")[0]


def _is_ours(folder: Path) -> bool:
    """Return True if a folder is of this node; those of older versions of this program name none."""
    return f"@{_NODE}~" in folder.name or "@" not in folder.name


def _is_old(folder: Path) -> bool:
    """Return True if a folder of another node has not changed for hours."""
    try:
        return time.time() - folder.stat().st_mtime > _FOREIGN_S
    except FileNotFoundError:
        return False


def publish(built: Path, final: Path, claimed: Path | None = None) -> bool:
    """
    Flush the folder ``built`` and rename it to ``final``, on the same disk; False if that is there already.

    Given the folder of the claim on it, what is there is set aside first: between the two there is none for a moment.
    """
    _make_folders(final.parent)
    share_tree(built, final.parent)
    flush_tree(built)
    if claimed is not None:
        set_aside(final, claimed)
    try:
        built.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    flush_folder(final.parent)
    return True


def publish_record(layout: CacheLayout, record: Record) -> None:
    """Write down why a series is not cached, in the place of what was written before."""
    path = layout.record(record.series_uid)
    _make_folders(path.parent)
    write_atomically(path, record.to_json())


def _make_folders(folder: Path) -> None:
    """Make a folder and the one that it is in, unless they are there, to last."""
    if not folder.is_dir():
        make_folder(folder.parent)
        make_folder(folder)
        flush_folder(folder.parent)


def set_aside(final: Path, claimed: Path) -> None:
    """Take a folder away in one step: into that of the claim on it, with which it is swept, also after a kill."""
    with suppress(FileNotFoundError):  # another node did so just now
        final.rename(claimed / f"replaced-{secrets.token_hex(4)}")


def publish_file(content: bytes, final: Path, claimed: Path) -> None:
    """Replace a file in one step by ``content``, which is prepared in the folder of a claim, and flushed."""
    prepared = claimed / secrets.token_hex(4)
    with prepared.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    share(prepared, final.parent)
    prepared.replace(final)
    flush_folder(final.parent)


def publish_tree(files: Mapping[str, bytes] | None, final: Path, claimed: Path) -> None:
    """
    Put a folder of ``files`` (names with slashes) in the place of another, or of none; None removes it.

    It is prepared in the folder of a claim; what it replaces goes there, to be swept with it.

    Raises
    ------
    FileExistsError
        Where locks do not reach other nodes, another one was faster.
    """
    if files is None:
        set_aside(final, claimed)
        flush_folder(final.parent)
        return
    prepared = claimed / secrets.token_hex(4)
    for name, content in files.items():
        (prepared / name).parent.mkdir(parents=True, exist_ok=True)
        (prepared / name).write_bytes(content)
    if not publish(prepared, final, claimed):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
