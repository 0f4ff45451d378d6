"""Folders for work in progress on this machine's disk (TMPDIR), gone with the process that holds them, however it ends.

    TMPDIR/aneurysm-<user>/
      .lock           held while a folder is made or the dead's are swept
      <random>/.held  locked by all processes that work in the folder; the kernel lets go of it when they die

A folder that nobody holds is swept when the next one is made.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

from aneurysm.errors import CacheError, NoSpaceError, UsageError
from aneurysm.processes.files import raise_no_space
from aneurysm.processes.locks import lock_file, locked

_ADVICE: Final = "TMPDIR can name a folder on another disk"


def _base() -> Path:
    base = Path(tempfile.gettempdir()) / f"aneurysm-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise UsageError(f"{base} is another user's. Set TMPDIR to a folder of your own")
    return base


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder, which is gone afterwards; sweep what dead processes left."""
    with locked(_base() / ".lock", keep=True):
        _sweep(_base())
        folder = Path(tempfile.mkdtemp(dir=_base()))
        descriptor = _hold(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the scratch folder of another process, so that it stays until both are done with it."""
    with locked(folder.parent / ".lock", keep=True):
        descriptor = _hold(folder)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def renaming_paths(folder: Path, url: str) -> Iterator[None]:
    """Let messages of our errors name ``url`` where they name ``folder``, its copy."""
    try:
        yield
    except NoSpaceError as error:
        if _ADVICE in str(error):
            raise
        raise NoSpaceError(f"{error}. {_ADVICE}") from error
    except (CacheError, UsageError) as error:
        if str(folder) not in str(error):
            raise
        raise type(error)(str(error).replace(str(folder), url)) from None


def raise_no_scratch_space(folder: Path) -> AbstractContextManager[None]:
    """Turn the operating system's error of a full disk into ours: it is that of ``folder``, a scratch folder."""
    return raise_no_space(folder, _ADVICE)


def _hold(folder: Path) -> int:
    descriptor = os.open(folder / ".held", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    lock_file(descriptor, shared=True, wait=True)
    return descriptor


def _sweep(base: Path) -> None:
    for folder in base.iterdir():
        if not folder.is_dir():
            continue
        with suppress(FileNotFoundError):
            descriptor = os.open(folder / ".held", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                if lock_file(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
