"""Data folder -> SeriesSource: which series there are, and which files belong to each. The RSNA layout, or any tree."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final

from aneurysm.dicom.frame import UID
from aneurysm.dicom.header import NotDicomError, read_header
from aneurysm.dicom.series import Series, read_series
from aneurysm.errors import AneurysmError, DataError, Reason, SeriesRejectedError
from aneurysm.inputs import Wanted, describe, folders_inside, hidden_series, mistake
from aneurysm.lazy_sequence import LazySequence
from aneurysm.processes.children import NO_LIMITS, Limits, LostError, Runner
from aneurysm.processes.threads import map_io
from aneurysm.rawdata.demographics import Demographics, read_demographics
from aneurysm.rawdata.facts import SeriesFacts
from aneurysm.rawdata.file_facts import FileFacts, file_facts, lost_facts
from aneurysm.rawdata.fingerprint import DataFingerprint, file_fingerprint, names_hash
from aneurysm.rawdata.masks import MASKS, find_masks
from aneurysm.rawdata.tables import LOCALIZERS_CSV, TRAIN_CSV, Tables, read_tables

UNREADABLE: Final = "unreadable"
"""Begins the name of what stands for files of a folder that can't be read, and whose series is not known."""
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BATCH: Final = 256
_FACTS_BATCH: Final = 64
_LEVEL_ENTRIES: Final = 1000
_LEVEL_FOLDERS: Final = 3
"""So much is looked at to see whether a folder is a level too high or too low."""
_LOST_AND_FOUND: Final = "lost+found"
"""Every ext4 disk has such a folder, which is root's alone: nothing of a series is in it."""
SCAN_MEMORY_MB: Final = 1000
"""MB that looking for a header may take in any case: a long one of functional groups takes 300."""


@dataclass(frozen=True)
class SeriesSource:
    """
    One series to be: its UID, and its folder (RSNA layout) or files. ``problem``: why the UID can't be used.

    ``files`` are text: a million `Path` take a third of a gigabyte more. ``lost`` is the reason and the detail of a
    file that could not be read during the scan, and that may be one of this series: it is not built without it.
    """

    uid: str
    folder: Path | None = None
    files: tuple[str, ...] = ()
    problem: str = ""
    lost: tuple[Reason, str] | None = None

    def check_complete(self) -> None:
        """Raise `SeriesRejectedError` if a file is lost that may be one of the series."""
        if self.lost is not None:
            raise SeriesRejectedError(*self.lost)

    def list_files(self) -> list[Path]:
        """Return the files, sorted; hidden ones are no part of a series."""
        return [Path(name) for name in self._names()]

    def read_headers(self) -> Series:
        """Read the headers of the files. Raises as `read_series`, and `SeriesRejectedError` if there are no files."""
        files = self.list_files()
        if not files:
            raise SeriesRejectedError(Reason.NO_FILES, "the folder of the series is empty or absent")
        return read_series(self.uid, files)

    def extent(self) -> SeriesFacts:
        """
        Return how many files it has, and about how many bytes; nothing if that can't be known.

        Asking for every file's size would take minutes on a network disk.
        """
        return self._extent()[0]

    def facts(self) -> SeriesFacts:
        """Return its extent, and what the header of the middle file says."""
        extent, middle = self._extent()
        try:
            return extent.with_header(read_header(Path(middle))) if middle else extent
        except (NotDicomError, OSError):
            return extent

    def _extent(self) -> tuple[SeriesFacts, str]:
        """Return the extent, and the middle file or ""."""
        try:
            names = self._names()
            middle = names[len(names) // 2] if names else ""
            each = os.stat(middle).st_size if middle else 0  # noqa: PTH116 - is text already
        except OSError:
            return SeriesFacts(), ""
        return SeriesFacts(len(names), each * len(names)), middle

    def _names(self) -> list[str]:
        return list(self.files) if self.folder is None else list(_visible_files(self.folder))

    def size(self) -> int:
        """Return the bytes of all files: what orders the work."""
        return sum(p.stat().st_size for p in self.list_files())

    @contextmanager
    def local_copy(self, *, headers_only: bool = False) -> Iterator[SeriesSource]:  # noqa: ARG002 - for remote ones
        """Yield the series as local files: this one, or what was downloaded of one that is elsewhere."""
        yield self


@dataclass
class Ignored:
    """How many files are no part of any series, by kind, and of each kind an example that names no file."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        """Count files of a kind; the first example is kept."""
        self.counts[kind] += count
        self.examples.setdefault(kind, example)

    def __str__(self) -> str:
        return ", ".join(f"{n} {kind} (such as {self.examples[kind]})" for kind, n in sorted(self.counts.items()))


@dataclass
class Inventory:
    """What a data folder holds; ``ignored`` are the files that are no part of any series."""

    root: Path | str
    layout: str
    sources: Sequence[SeriesSource]
    ignored: Ignored = field(default_factory=Ignored)


def find_series(root: Path, workers: int = 1, limits: Limits = NO_LIMITS, processes: Runner | None = None) -> Inventory:
    """
    Find the series under ``root``.

    With a folder ``series`` (the RSNA layout) each folder in it is one series and bears its UID: the files of the
    test set carry none. Otherwise every file below ``root`` is opened, and SeriesInstanceUID decides: by ``workers``
    of ``processes``, which are started if none are given, or with 0 in this one. A file that takes more than
    ``limits``, or more memory than any header needs, goes to the series of its folder.

    Raises
    ------
    DataError
        There is no such folder, or nothing in it that could be a series.
    """
    if not root.is_dir():
        raise DataError(mistake(describe(root), Wanted.DATA) or f"{root} is no folder")
    if (root / "series").is_dir():
        inventory = _rsna_layout(root)
    elif (root / "train.csv").is_file():
        raise DataError(f"{root} has a train.csv but no folder series/. Is the data set unpacked?")
    else:
        inventory = _free_tree(root, workers, limits, processes)
    if not inventory.sources:
        what = hidden_series(root) or f"found {str(inventory.ignored) or 'no files'}"
        raise DataError(f"no DICOM series under {root}: {what}")
    return inventory


def check_level(root: Path) -> None:
    """
    Make sure that ``root`` is not a level too high or too low, where the tables of its data set would be overlooked.

    Raises
    ------
    DataError
        It is, or what lies at ``root`` is something else than data.
    """
    if problem := mistake(describe(root), Wanted.DATA):
        raise DataError(f"{problem}. The data are named with --data or ANEURYSM_DATA")
    if (root / "series").is_dir():
        return
    if root.name == "series" and (root.parent / "train.csv").is_file():
        raise DataError(f"{root} is a data set's folder series/, and the tables lie above it: name {root.parent}")
    if any((folder / "series").is_dir() and (folder / "train.csv").is_file() for folder in folders_inside(root)):
        raise DataError(f"{root} is one level too high: name the folder in it that has series/ and train.csv")


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


def folder_uids(names: Sequence[str], listed: Callable[[], Container[str]]) -> tuple[list[str], dict[str, str]]:
    """
    Return what series are in the folders of the RSNA layout, and by it the names of those that bear another name.

    A folder bears its UID; what is no UID, and none that the tables (``listed``, asked only then) have, may be the name
    of a patient, and is replaced by a hash.
    """
    renamed: dict[str, str] = {}
    known = listed() if any(not UID.fullmatch(name) for name in names) else ()

    def uid_of(name: str) -> str:
        # One string with that of the tables: see `aneurysm.rawdata.tables`.
        uid = sys.intern(name) if UID.fullmatch(name) or name in known else hashed_name("folder", name)
        if uid != name:
            renamed[uid] = name
        return uid

    return [uid_of(name) for name in names], renamed


def _rsna_layout(root: Path) -> Inventory:
    names, loose = [], 0
    with os.scandir(root / "series") as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name)
            else:
                loose += 1
    ignored = Ignored()
    if loose:
        ignored.add("loose files in series/", f"file 1 of {loose} by name", loose)
    names.sort()
    folder, picked = root / "series", names[:_LEVEL_FOLDERS]
    if picked and all(_holds_folders_alone(folder / name) for name in picked):
        raise DataError(
            f"the folders in {folder} hold folders, and no files: the files of a series lie directly in "
            "series/<UID>/. Move them up"
        )
    uids, renamed = folder_uids(names, lambda: read_tables(root))

    def source(index: int) -> SeriesSource:
        uid = uids[index]
        return safe_source(uid, folder / renamed.get(uid, uid))

    return Inventory(root, "rsna", LazySequence(source, range(len(uids))), ignored)


def _holds_folders_alone(folder: Path) -> bool:
    """Return True if a folder has folders, and nothing else of the first entries that it lists."""
    try:
        with os.scandir(folder) as entries:
            kinds = {e.is_dir() for e in islice(entries, _LEVEL_ENTRIES) if not e.name.startswith(".")}
    except OSError:
        return False
    return kinds == {True}


def _free_tree(root: Path, workers: int, limits: Limits, processes: Runner | None) -> Inventory:
    from aneurysm.processes.map_batches import map_batches  # joblib, which its processes don't need

    paths = list(_visible_files(root, recursive=True))
    limits = limits.at_most(SCAN_MEMORY_MB)
    facts = map_batches(file_facts, paths, _BATCH, workers, lost_facts, limits, processes)
    sources, ignored = group_by_series(root, paths, list(facts))
    return Inventory(root, "tree", sources, ignored)


def group_by_series(root: Path, paths: Sequence[str], facts: Sequence[FileFacts]) -> tuple[list[SeriesSource], Ignored]:
    """
    Return the series of a tree, and which files are ignored; ``facts`` are those of ``paths``, all below ``root``.

    Slices that are damaged or have no pixels stay with their series, which then says so. A file that can't be read at
    all may be one of any series that has files in its folder; where none has, of those that are spread over several
    folders; else it makes up a series of its own, with the others of its folder.
    """
    ignored = Ignored()
    images = {f.series_uid for f in facts if not f.kind and f.lost is None}
    by_uid: dict[str, list[str]] = defaultdict(list)
    by_folder: dict[str, list[str]] = defaultdict(list)
    unreadable: dict[str, list[int]] = defaultdict(list)
    for i, (path, f) in enumerate(zip(paths, facts, strict=True)):
        folder = os.path.dirname(path)  # noqa: PTH120 - of a million
        if f.lost is not None and Path(path).name == _LOST_AND_FOUND:
            ignored.add("unreadable", _by_place(i, paths))
        elif f.lost is not None:
            unreadable[path if f.kind == "folder" else folder].append(i)
        elif f.kind and not (f.is_slice or (f.series_uid and f.series_uid in images)):
            named = f"image {f.sop_uid}" if UID.fullmatch(f.sop_uid) else _by_place(i, paths)
            ignored.add(f.kind, named)
        elif f.series_uid:
            by_uid[f.series_uid].append(path)
        else:
            by_folder[folder].append(path)
    sources = [safe_source(uid, files=files) for uid, files in sorted(by_uid.items())]
    taken = {s.uid for s in sources}
    for folder, files in sorted(by_folder.items()):
        name = Path(folder).name
        if not UID.fullmatch(name) or name in taken:
            name = hashed_name("folder", Path(folder).relative_to(root).as_posix())
        taken.add(name)
        sources.append(safe_source(name, files=files))
    if unreadable:
        sources = _with_lost(root, sources, paths, facts, unreadable)
    return sources, ignored


def _by_place(index: int, paths: Sequence[str]) -> str:
    return f"file {index + 1} of {len(paths)} by path"


def _with_lost(
    root: Path,
    sources: list[SeriesSource],
    paths: Sequence[str],
    facts: Sequence[FileFacts],
    unreadable: Mapping[str, Sequence[int]],
) -> list[SeriesSource]:
    """Return ``sources`` with those marked that files which can't be read (indices, by folder) may belong to."""
    folders = [{os.path.dirname(name) for name in s.files} for s in sources]  # noqa: PTH120
    spread = [os.path.commonpath(f) if len(f) > 1 else None for f in folders]
    marked = dict(enumerate(sources))
    for folder, indices in unreadable.items():
        reason, detail = facts[indices[0]].lost or (Reason.READ_ERROR, "")
        others = f", and {len(indices) - 1} more of its folder" if len(indices) > 1 else ""
        lost = f"{_by_place(indices[0], paths)} can't be read when the data are scanned{others}: {detail}"
        affected = [i for i, own in enumerate(folders) if folder in own] or [
            i for i, common in enumerate(spread) if common and Path(folder).is_relative_to(common)
        ]
        for i in affected:
            marked[i] = replace(marked[i], lost=(reason, f"{lost}. It may be one of this series"))
        if not affected:
            name = hashed_name(UNREADABLE, Path(folder).relative_to(root).as_posix())
            own = tuple(paths[i] for i in indices)
            marked[len(marked)] = SeriesSource(name, files=own, lost=(reason, f"{lost}. Its series is not known"))
    return list(marked.values())


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
            # A link to nothing, as of a file that was not downloaded, is a file that can't be read.
            is_file = entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
            is_folder = recursive and entry.is_dir() and not entry.name.endswith(".zarr")
        except OSError:  # a link to itself
            is_file, is_folder = True, False
        if is_file:
            yield entry.path
        elif is_folder:
            yield from _visible_files(entry.path, recursive=True, above=above | {here})


class DataFolder:
    """Data in a folder."""

    path: Path | None = None
    """The folder; None if it is none, but a URL."""
    name: str
    """The folder, or the URL."""

    def __init__(self, root: Path) -> None:
        self.path = self._root = root
        self.name = str(root)

    def find_series(self, workers: int, limits: Limits = NO_LIMITS, processes: Runner | None = None) -> Inventory:
        """Find the series; see `aneurysm.rawdata.folder.find_series`."""
        with translate_read_errors(self._root):
            return find_series(self._root, workers, limits, processes)

    def tables(self) -> Tables:
        """Read the tables; see `aneurysm.rawdata.tables.read_tables`."""
        with translate_read_errors(self._root):
            return read_tables(self._root)

    def demographics(self) -> dict[str, Demographics]:
        """Read ages and sexes; see `aneurysm.rawdata.demographics.read_demographics`."""
        with translate_read_errors(self._root):
            return read_demographics(self._root / TRAIN_CSV)

    def fingerprint(self, known: DataFingerprint | None = None) -> DataFingerprint:
        """
        Return that of the tables and of the names at the top; tables that look as ``known`` are not read again.

        Raises
        ------
        DataError
            They can't be read.
        """
        with translate_read_errors(self._root):
            names = sorted(name for name in os.listdir(self._root) if not name.startswith("."))  # noqa: PTH208 - names
            before = {} if known is None else known.tables
            tables = {
                name: table
                for name in (TRAIN_CSV, LOCALIZERS_CSV)
                if (table := file_fingerprint(self._root / name, before.get(name))) is not None
            }
        return DataFingerprint(top_level=names_hash(names), tables=tables)

    def find_masks(self) -> Mapping[str, Path | str] | None:
        """Return where the vessel masks are, by series UID; None if there is no folder of masks."""
        with translate_read_errors(self._root):
            return find_masks(self._root) if (self._root / MASKS).is_dir() else None

    def extents(self, sources: Sequence[SeriesSource]) -> Iterator[SeriesFacts]:
        """Yield how many files and about how many bytes each series has."""
        return map_io(sources, SeriesSource.extent)

    def facts(
        self, sources: Sequence[SeriesSource], workers: int, limits: Limits = NO_LIMITS, processes: Runner | None = None
    ) -> Iterator[SeriesFacts]:
        """
        Yield what is known of each series by one of its headers; see `map_batches` of who reads them.

        Of one whose header takes more than ``limits``, or its process along, nothing is.
        """
        from aneurysm.processes.map_batches import map_batches  # joblib, which its processes don't need

        limits = limits.at_most(SCAN_MEMORY_MB)
        return map_batches(_facts_of_series, sources, _FACTS_BATCH, workers, _no_facts, limits, processes)


@contextmanager
def translate_read_errors(root: str | Path) -> Iterator[None]:
    """Turn the operating system's error into a `DataError`, which does not name what is in ``root``."""
    try:
        yield
    except AneurysmError:
        raise
    except OSError as error:
        # Not by its name: of what lies below, that may be a patient's.
        within = "" if os.path.realpath(root) == os.path.realpath(error.filename or root) else ", or something in it,"
        raise DataError(f"{root}{within} can't be read: {error.strerror or type(error).__name__}") from error


def _facts_of_series(sources: Sequence[SeriesSource]) -> list[SeriesFacts]:
    return [source.facts() for source in sources]


def _no_facts(_source: SeriesSource, _error: LostError) -> SeriesFacts:
    return SeriesFacts()
