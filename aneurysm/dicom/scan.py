"""Data folder -> SeriesSource: which series there are, and which files belong to each. The RSNA layout, or any tree."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aneurysm.annotations.tables import read_tables
from aneurysm.dicom.header import NotDicomError, read_header
from aneurysm.dicom.series import UID
from aneurysm.errors import DataError

_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BATCH: Final = 256


@dataclass(frozen=True)
class SeriesSource:
    """
    One series to be: its UID, and its folder (RSNA layout) or files. ``problem``: why the UID can't be used.

    ``files`` are text: a million `Path` take a third of a gigabyte more.
    """

    uid: str
    folder: Path | None = None
    files: tuple[str, ...] = ()
    problem: str = ""

    def list_files(self) -> list[Path]:
        """Return the files, sorted; hidden ones are no part of a series."""
        return [Path(name) for name in self._names()]

    def approximate_size(self) -> int:
        """Return about how many bytes it has: asking for every file's size would take minutes on a network disk."""
        names = self._names()
        return os.stat(names[len(names) // 2]).st_size * len(names) if names else 0  # noqa: PTH116 - is text already

    def _names(self) -> list[str]:
        return list(self.files) if self.folder is None else list(_visible_files(self.folder))

    def size(self) -> int:
        """Return the bytes of all files: what orders the work."""
        return sum(p.stat().st_size for p in self.list_files())

    @contextmanager
    def brought(self, *, headers_only: bool = False) -> Iterator[SeriesSource]:  # noqa: ARG002 - for stored ones
        """Yield the series as local files: this one, or what was fetched of one that is elsewhere."""
        yield self


@dataclass
class Inventory:
    """What a data folder holds. ``ignored`` counts by kind the files that are no part of any series."""

    root: Path | str
    layout: str
    sources: list[SeriesSource]
    ignored: Counter[str] = field(default_factory=Counter)


def find_series(root: Path, workers: int = 1, timeout_s: float | None = None) -> Inventory:
    """
    Find the series under ``root``.

    With a folder ``series`` (the RSNA layout) each folder in it is one series and bears its UID: the files of the
    test set carry none. Otherwise every file below ``root`` is opened, and SeriesInstanceUID decides. A file that hangs
    is given up after ``timeout_s`` seconds, if that is given.

    Raises
    ------
    DataError
        There is no such folder, or nothing in it that could be a series.
    """
    if not root.is_dir():
        raise DataError(f"there is no data folder {root}. Name it with --data or ANEURYSM_DATA")
    if (root / "series").is_dir():
        inventory = _rsna_layout(root)
    elif (root / "train.csv").is_file():
        raise DataError(f"{root} has a train.csv but no folder series/. Is the data set unpacked?")
    else:
        inventory = _free_tree(root, workers, timeout_s)
    if not inventory.sources:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(inventory.ignored.items())) or "no files"
        raise DataError(f"no DICOM series under {root}: found {kinds}")
    return inventory


def safe_source(uid: str, folder: Path | None = None, files: Sequence[str] = ()) -> SeriesSource:
    """
    Return a source whose ``uid`` can be a file's name.

    A UID comes out of a file, and becomes a path in the cache: ``../x`` must not. Whatever is no plain name is
    replaced by a hash, and marked.
    """
    if _SAFE_NAME.fullmatch(uid) and not uid.endswith("."):
        return SeriesSource(uid, folder, tuple(files))
    problem = "the series' UID is no valid one: series_uid is the start of its SHA-256"
    return SeriesSource(hashed_name("invalid", uid), folder, tuple(files), problem)


def hashed_name(kind: str, name: str) -> str:
    """Return what stands for the ``name`` of a file or folder, which may be a patient's: the start of its SHA-256."""
    return f"{kind}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def named_folders(names: Iterable[str], listed: Callable[[], Container[str]]) -> Iterator[tuple[str, str]]:
    """
    Yield the folders of the RSNA layout, sorted, each with the UID of its series.

    A folder bears it; what is no UID, and none that the tables (``listed``, asked only then) have, may be the name of a
    patient, and is replaced by a hash.
    """
    names = sorted(name for name in names if not name.startswith("."))
    known = listed() if any(not UID.fullmatch(name) for name in names) else ()
    for name in names:
        yield name, name if UID.fullmatch(name) or name in known else hashed_name("folder", name)


def _rsna_layout(root: Path) -> Inventory:
    ignored = Counter[str]()
    names = []
    with os.scandir(root / "series") as entries:
        for entry in entries:
            if entry.is_dir():
                names.append(entry.name)
            elif not entry.name.startswith("."):
                ignored["loose files in series/"] += 1
    folders = named_folders(names, lambda: read_tables(root).notes)
    return Inventory(root, "rsna", [safe_source(uid, root / "series" / name) for name, uid in folders], ignored)


def _free_tree(root: Path, workers: int, timeout_s: float | None) -> Inventory:
    from aneurysm.cache.batches import in_batches
    from aneurysm.cache.supervisor import Limits

    paths = list(_visible_files(root, recursive=True))
    told = in_batches(series_uids, paths, _BATCH, workers, not_told, Limits(timeout_s))
    sources, ignored = group_by_series(root, zip(paths, told, strict=True))
    return Inventory(root, "tree", sources, ignored)


def not_told(_file: object, _error: Exception) -> tuple[str, str]:
    """Return what `series_uids` says of a file without UID: the series of its folder will tell what is the matter."""
    return "", ""


def group_by_series(
    root: Path, found: Iterable[tuple[str, tuple[str, str]]]
) -> tuple[list[SeriesSource], Counter[str]]:
    """
    Return the series of a tree, and how many files are ignored, by kind.

    ``found`` has of each file its path below ``root``, why it is ignored or "", and its SeriesInstanceUID or "".
    """
    ignored = Counter[str]()
    by_uid: dict[str, list[str]] = defaultdict(list)
    by_folder: dict[Path, list[str]] = defaultdict(list)
    for path, (kind, uid) in found:
        if kind:
            ignored[kind] += 1
        elif uid:
            by_uid[uid].append(path)
        else:
            by_folder[Path(path).parent].append(path)
    sources = [safe_source(uid, files=files) for uid, files in sorted(by_uid.items())]
    taken = {s.uid for s in sources}
    for folder, files in sorted(by_folder.items()):
        name = folder.name
        if not UID.fullmatch(name) or name in taken:
            name = hashed_name("folder", folder.relative_to(root).as_posix())
        taken.add(name)
        sources.append(safe_source(name, files=files))
    return sources, ignored


def series_uids(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Return for each path why it is ignored or "", and its SeriesInstanceUID or ""."""
    found = []
    for path in paths:
        try:
            header = read_header(Path(path))
        except NotDicomError:
            found.append(("not DICOM", ""))
        except OSError:
            found.append(("unreadable", ""))
        else:
            if header.pixel_length == 0:
                found.append(("DICOM without image", ""))
            else:
                found.append(("", str(header.get("SeriesInstanceUID", ""))))
    return found


def _visible_files(
    folder: str | Path, *, recursive: bool = False, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
    """
    Yield the files of a folder by name, links followed; with ``recursive`` those below it, folder by folder.

    A cache's volumes are left out.
    """
    try:
        status = os.stat(folder)  # noqa: PTH116 - here and below: Path objects would take most of the time
        here = (status.st_dev, status.st_ino)
        if here in above:
            return  # a link to a folder that it lies in
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError:
        if not above:
            raise
        yield str(folder)  # can't be opened as a file, either: one that is unreadable
        return
    for entry in entries:
        try:
            is_file = entry.is_file()
            is_folder = recursive and entry.is_dir() and not entry.name.endswith(".zarr")
        except OSError:  # a link to itself
            is_file, is_folder = recursive, False
        if is_file:
            yield entry.path
        elif is_folder:
            yield from _visible_files(entry.path, recursive=True, above=above | {here})
