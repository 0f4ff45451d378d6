"""What the folder of a cache allows: writing, renaming, links, locks in this host and across hosts, a shared clock.

All is tried in a folder of its own, CACHE/.aneurysm-doctor/<node>~<random>, which is gone afterwards; where there is no
cache yet, in the folder above it. Doctors that run at the same time on other hosts find each other there: each holds a
lock, and looks whether it sees those of the others.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from aneurysm.precaching.finding import Finding, State
from aneurysm.processes.host import Host, Mount, mount_of
from aneurysm.processes.locks import is_locked, take_lock
from aneurysm.processes.shared_folder import describe_denial, group_name, make_folder

_ROOM: Final = ".aneurysm-doctor"
_TRIES: Final = 20
_POLL_S: Final = 0.2
_FRESH_S: Final = 5.0
"""A doctor touches its lock at every look; one that did not for so long is dead."""
_STALE_S: Final = 3600.0
_SKEW_S: Final = 5.0
_SLOW_FLUSH_S: Final = 1.0
_NODE: Final = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64] or "node"
_OF_ONE_HOST: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs"})
_IS_LOCKED: Final = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("locked")
"""
_NO_LOCKS: Final = (
    "Nothing is damaged by it, but two hosts may build one series, and what a dead host left counts as its work "
    "for six hours"
)


def existing_folder(cache: Path) -> Path:
    """Return the folder of a cache, or the nearest one above it that there is."""
    return next(folder for folder in (cache, *cache.parents) if folder.exists())


def check_folder(cache: Path, host: Host, listen_s: float = 2.0, node: str = _NODE) -> list[Finding]:
    """
    Try what a run does in the folder of a cache.

    On a file system that other hosts may see, doctors of theirs are listened for as long as ``listen_s``; ``node`` is
    what this host is called there.
    """
    base = existing_folder(cache)
    if not base.is_dir():
        return [Finding("writing", State.ERROR, f"{base} is a file", "Name a folder with --cache")]
    room, own = base / _ROOM, base / _ROOM / f"{node}~{secrets.token_hex(4)}"
    lock = own.with_name(f"{own.name}.lock")
    descriptor: int | None = None
    try:
        _sweep(room, node)
        for attempt in range(_TRIES):
            try:
                make_folder(room)
                make_folder(own)
                break
            except FileNotFoundError:  # the last of other doctors left just now
                if attempt == _TRIES - 1:
                    raise
        descriptor = take_lock(lock)
        findings = [
            _writing(own, cache, base),
            _renaming(own),
            _links(own),
            _clock(own),
            _sharing(base, host),
            _locks_here(lock),
            _locks_across(lock, mount_of(base.resolve(), host), listen_s, node),
        ]
    except OSError as error:
        found = f"{base}: {describe_denial(error)}"
        return [Finding("writing", State.ERROR, found, "Name another folder with --cache, or mend it")]
    finally:
        shutil.rmtree(own, ignore_errors=True)
        with suppress(OSError):
            lock.unlink()
        if descriptor is not None:
            os.close(descriptor)
        with suppress(OSError):  # there is none, or other doctors are in it
            room.rmdir()
    return findings


def _sweep(room: Path, node: str) -> None:
    """Remove what doctors left that were killed."""
    with suppress(OSError):
        for lock in room.glob("*.lock"):
            age_s = time.time() - lock.stat().st_mtime
            if not is_locked(lock) and (lock.name.startswith(f"{node}~") or age_s > _STALE_S):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)


def _writing(own: Path, cache: Path, base: Path) -> Finding:
    where = f"{cache}" if cache == base else f"{base}, where the cache is to be made,"
    started = time.monotonic()
    with (own / "file").open("wb") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(own, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    taken_s = time.monotonic() - started
    found = f"{where} can be written, and flushes in {1000 * taken_s:.0f} ms"
    if taken_s > _SLOW_FLUSH_S:
        return Finding("writing", State.WARNING, found, "Each series waits so long five times: is the disk overloaded?")
    return Finding("writing", State.OK, found)


def _renaming(own: Path) -> Finding:
    for name in ("built", "taken"):
        (own / name).mkdir()
        (own / name / "file").write_bytes(b"x")
    (own / "built").rename(own / "final")
    try:
        (own / "final").rename(own / "taken")
    except OSError as error:
        refused = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
    else:
        refused = False
    if refused and (own / "final" / "file").is_file():
        return Finding("renaming", State.OK, "a folder is renamed in one step, and never over another")
    return Finding(
        "renaming", State.ERROR, "a folder is renamed over another one, or is lost by it",
        "Name a folder on another file system with --cache: by this one two runs would mix their volumes",
    )  # fmt: skip


def _links(own: Path) -> Finding:
    try:
        os.link(own / "file", own / "link")
    except OSError as error:
        return Finding(
            "hard links", State.ERROR, f"files can't be linked: {error.strerror}",
            "Name a folder on another file system with --cache: the first of several runs is told by a link",
        )  # fmt: skip
    try:
        os.link(own / "file", own / "link")
    except FileExistsError:
        return Finding("hard links", State.OK, "of two links of one name the first counts")
    return Finding("hard links", State.ERROR, "a second link replaces the first", "Name another folder with --cache")


def _clock(own: Path) -> Finding:
    path = own / "now"
    path.touch()
    skew_s = path.stat().st_mtime - time.time()
    found = f"the file system's clock and this host's differ by {abs(skew_s):.1f} s"
    if abs(skew_s) > _SKEW_S:
        return Finding("clock", State.WARNING, found, "Set the clocks (NTP): ages of abandoned work are told by them")
    return Finding("clock", State.OK, found)


def _sharing(base: Path, host: Host) -> Finding:
    status = base.stat()
    found = re.search(r"^Umask:\s*([0-7]+)", host.read("/proc/self/status"), re.MULTILINE)
    umask = found[1] if found else "not known"
    group = group_name(status.st_gid)
    if not status.st_mode & stat.S_IWGRP:
        return Finding("sharing", State.OK, f"for one user alone: the group {group} may not write (umask {umask})")
    if not status.st_mode & stat.S_ISGID:
        return Finding(
            "sharing", State.WARNING, f"the group {group} may write, but what is made gets another group or none",
            f"If several users build here: chmod g+s {base}",
        )  # fmt: skip
    return Finding("sharing", State.OK, f"what is made is the group {group}'s, whatever the umask (here {umask})")


def _locks_here(lock: Path) -> Finding:
    command = [sys.executable, "-I", "-S", "-c", _IS_LOCKED, str(lock)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    if answer.stdout.strip() == "locked":
        return Finding("locks in this host", State.OK, "another process sees a lock")
    return Finding("locks in this host", State.WARNING, "another process does not see a lock", _NO_LOCKS)


def _locks_across(lock: Path, mount: Mount | None, listen_s: float, node: str) -> Finding:
    if mount is not None and mount.kind in _OF_ONE_HOST:
        return by_mount(mount)
    seen, unseen = _other_hosts(lock, listen_s, node)
    check = "locks across hosts"
    if unseen:
        return Finding(check, State.WARNING, f"locks of {', '.join(sorted(unseen))} are not seen here", _NO_LOCKS)
    if seen:
        return Finding(check, State.OK, f"locks of {', '.join(sorted(seen))} are seen here")
    return by_mount(mount)


def by_mount(mount: Mount | None) -> Finding:
    """Return how far locks reach by the type and the options of a file system."""
    check = "locks across hosts"
    alone = "No doctor ran on another host at the same time: start it on two at once to be sure"
    match mount:
        case None:
            return Finding(check, State.UNKNOWN, "the mount is not known", alone)
        case Mount(kind="nfs" | "nfs4", options=options) if "nolock" in options or options.get("local_lock") in (
            "all",
            "flock",
        ):
            return Finding(check, State.WARNING, f"{mount.kind} is mounted with nolock or local_lock", _NO_LOCKS)
        case Mount(kind="lustre", options=options) if "flock" not in options:
            return Finding(check, State.WARNING, "lustre is mounted without flock, or with localflock", _NO_LOCKS)
        case Mount(kind="cifs" | "smb3", options=options) if "nobrl" in options:
            return Finding(check, State.WARNING, f"{mount.kind} is mounted with nobrl", _NO_LOCKS)
        case Mount(kind="beegfs"):
            return Finding(check, State.UNKNOWN, "beegfs: only with tuneUseGlobalFileLocks = true", alone)
        case Mount(kind=kind) if kind in _OF_ONE_HOST:
            return Finding(check, State.OK, f"{mount.kind}: a file system of this host, which others don't see")
    return Finding(check, State.UNKNOWN, f"{mount.kind}: it should, by its options", alone)


def _other_hosts(lock: Path, listen_s: float, node: str) -> tuple[set[str], set[str]]:
    """Return the hosts whose locks are seen, and those whose locks are not, as far as doctors run there now."""
    seen: set[str] = set()
    unlocked: dict[Path, float] = {}
    unseen: set[str] = set()
    end = time.monotonic() + listen_s
    while time.monotonic() < end:
        with suppress(OSError):
            os.utime(lock)
            now = lock.stat().st_mtime  # by the file system's clock
            for other in lock.parent.glob("*~*.lock"):
                name = other.name.partition("~")[0]
                with suppress(OSError):  # it is done
                    touched = other.stat().st_mtime
                    if name == node or abs(now - touched) > _FRESH_S:
                        continue
                    if is_locked(other):
                        seen.add(name)
                    elif unlocked.setdefault(other, touched) != touched:
                        unseen.add(name)  # it lived on after a look at which it held no lock
        time.sleep(_POLL_S)
    return seen - unseen, unseen
