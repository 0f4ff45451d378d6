"""PlanFolder: the files of one plan, in a folder or in an object store; each is there whole, or not at all.

They name files of the data, which may be patients': they are their owner's alone, or, in a folder that a group shares,
that group's.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

from aneurysm.documents import read_bounded
from aneurysm.errors import PlanError, UsageError
from aneurysm.processes.files import replaced_file, sweep_temporaries, write_once
from aneurysm.processes.shared_folder import describe_denial, make_folder
from aneurysm.remote.client import ObjectStore
from aneurysm.remote.url import is_url

DOCUMENT: Final = "plan.json"
"""What says that there is a plan, and which other files are of it: it is written last."""
OURS: Final = re.compile(r"plan\.json|\d{6}-[0-9a-f]{16}\.part|\d{6}\.done")
_MODE: Final = 0o600
_LONGEST_LINE: Final = 64 * 2**20


class PlanFolder(Protocol):
    """Where a plan is."""

    @property
    def name(self) -> str:
        """How messages call it."""

    def check(self) -> None:
        """Raise `UsageError` if something else is there than a plan, or what is left of one."""

    def read(self, name: str, most: int) -> bytes:
        """Return a file. Raises `FileNotFoundError`, and `ValueError` if it is longer than ``most`` bytes."""

    def lines(self, name: str) -> Iterator[bytes]:
        """Yield the lines of a file. Raises as `read`; a line is too long from 64 MB on."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file in place of the one that is there."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one; return True if there was none."""

    def names(self) -> list[str]:
        """Return the names of all files of a plan, or of what is left of one."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; what is not there is none the worse for it."""

    def remove(self) -> None:
        """Remove it as a whole."""


def plan_folder(place: str | Path) -> PlanFolder:
    """Return where a plan is: a folder, a URL, or the document in either."""
    text = str(place).removesuffix(f"/{DOCUMENT}")
    return PlanBucket(ObjectStore(text)) if is_url(text) else LocalPlanFolder(Path(text).absolute())


class LocalPlanFolder:
    """A folder on a disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def name(self) -> str:
        """See `PlanFolder.name`."""
        return str(self._root)

    def check(self) -> None:
        """See `PlanFolder.check`."""
        if not self._root.exists():
            return
        if not self._root.is_dir():
            raise UsageError(f"{self._root} is a file; --out names a folder")
        others = [path for path in self._root.iterdir() if not path.name.startswith(".")]
        if any(not OURS.fullmatch(path.name) for path in others):
            raise UsageError(f"{self._root} holds something else than a plan: name another folder with --out")

    def read(self, name: str, most: int) -> bytes:
        """See `PlanFolder.read`."""
        return read_bounded(self._root / name, most)

    def lines(self, name: str) -> Iterator[bytes]:
        """See `PlanFolder.lines`."""
        with (self._root / name).open("rb") as file:
            while line := file.readline(_LONGEST_LINE + 1):
                if len(line) > _LONGEST_LINE:
                    raise ValueError("a line is too long")
                yield line

    def write(self, name: str, content: bytes) -> None:
        """See `PlanFolder.write`."""
        self._make()
        with replaced_file(self._root / name, _MODE) as file:
            file.write(content)

    def create(self, name: str, content: bytes) -> bool:
        """See `PlanFolder.create`."""
        self._make()
        return write_once(self._root / name, content.decode("ascii"), _MODE)

    def names(self) -> list[str]:
        """See `PlanFolder.names`."""
        try:
            names = sorted(path.name for path in self._root.iterdir())
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise PlanError(f"{self._root} is a file, and no folder of a plan") from error
        return [name for name in names if OURS.fullmatch(name)]

    def delete(self, names: Iterable[str]) -> None:
        """See `PlanFolder.delete`."""
        for name in names:
            (self._root / name).unlink(missing_ok=True)
        if self._root.is_dir():
            sweep_temporaries(self._root)

    def remove(self) -> None:
        """See `PlanFolder.remove`."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _make(self) -> None:
        try:
            for folder in (*reversed(self._root.parents), self._root):
                if not folder.is_dir():
                    make_folder(folder)
        except OSError as error:
            raise UsageError(f"the plan can't be written to {self._root}: {describe_denial(error)}") from error


class PlanBucket:
    """Objects of a store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @property
    def name(self) -> str:
        """See `PlanFolder.name`."""
        return self._store.url

    def check(self) -> None:
        """See `PlanFolder.check`."""
        folders, names = self._store.folders("")
        if folders or any(not OURS.fullmatch(name) for name in names):
            raise UsageError(f"{self._store.url} holds something else than a plan: name another place with --out")

    def read(self, name: str, most: int) -> bytes:
        """See `PlanFolder.read`."""
        described = self._store.describe(name)
        if described is None:
            raise FileNotFoundError(f"there is no {name}")
        if described.size > most:
            raise ValueError(f"it is longer than {most} bytes")
        return self._store.read(name) if described.size else b""

    def lines(self, name: str) -> Iterator[bytes]:
        """See `PlanFolder.lines`."""
        for line in self.read(name, 64 * _LONGEST_LINE).splitlines(keepends=True):
            if len(line) > _LONGEST_LINE:
                raise ValueError("a line is too long")
            yield line

    def write(self, name: str, content: bytes) -> None:
        """See `PlanFolder.write`."""
        self._store.write(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """See `PlanFolder.create`."""
        return self._store.create(name, content)

    def names(self) -> list[str]:
        """See `PlanFolder.names`."""
        _, names = self._store.folders("")
        return [name for name in names if OURS.fullmatch(name)]

    def delete(self, names: Iterable[str]) -> None:
        """See `PlanFolder.delete`."""
        self._store.delete(names)

    def remove(self) -> None:
        """See `PlanFolder.remove`."""
        self._store.delete(self.names())
