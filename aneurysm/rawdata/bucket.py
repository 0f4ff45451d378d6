"""DICOM data below a URL -> series whose files are downloaded to a scratch folder while they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from aneurysm.dicom.encoding import DEFLATED
from aneurysm.dicom.header import NotDicomError, read_header
from aneurysm.errors import DataError, Reason
from aneurysm.lazy_sequence import LazySequence
from aneurysm.processes.children import NO_LIMITS, Limits, Runner
from aneurysm.processes.threads import map_io
from aneurysm.rawdata.demographics import Demographics, read_demographics
from aneurysm.rawdata.facts import SeriesFacts
from aneurysm.rawdata.file_facts import FileFacts, file_facts, lost_facts
from aneurysm.rawdata.fingerprint import DataFingerprint, FileFingerprint, names_hash
from aneurysm.rawdata.folder import (
    SCAN_MEMORY_MB,
    DataFolder,
    Ignored,
    Inventory,
    SeriesSource,
    check_level,
    folder_uids,
    group_by_series,
    safe_source,
    translate_read_errors,
)
from aneurysm.rawdata.masks import MASK_ENDINGS, MASKS
from aneurysm.rawdata.tables import LOCALIZERS_CSV, TRAIN_CSV, Tables, read_tables
from aneurysm.remote.client import ObjectStore, RemoteObject
from aneurysm.remote.scratch import raise_no_scratch_space, renaming_paths, scratch_folder
from aneurysm.remote.url import is_url

_HEAD: Final = 32 * 1024
"""So much of an object is read to learn whose series it is; of most headers that is all."""
_BATCH: Final = 256


@dataclass(frozen=True)
class BucketSource(SeriesSource):
    """A series in an object store: all objects of a folder (RSNA layout), or those of ``keys``, of ``sizes``."""

    url: str = ""
    prefix: str = ""
    keys: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    def list_files(self) -> list[Path]:
        """Raise: there are files only within `local_copy`."""
        raise TypeError(f"series {self.uid} is in an object store: bring it first")

    def size(self) -> int:
        """Return the bytes of all objects."""
        return sum(self._objects().values())

    def extent(self) -> SeriesFacts:
        """Return how many objects it has, and their bytes."""
        objects = self._objects()
        return SeriesFacts(len(objects), sum(objects.values()))

    def facts(self) -> SeriesFacts:
        """Return its extent, and what the header of the middle object says."""
        objects = self._objects()
        extent = SeriesFacts(len(objects), sum(objects.values()))
        if not objects:
            return extent
        middle = list(objects)[len(objects) // 2]
        with scratch_folder() as folder, raise_no_scratch_space(folder):
            try:
                _bring_header(ObjectStore(self.url), middle, objects[middle], folder / "middle")
                return extent.with_header(read_header(folder / "middle"))
            except (NotDicomError, FileNotFoundError):
                return extent

    @contextmanager
    def local_copy(self, *, headers_only: bool = False) -> Iterator[SeriesSource]:
        """Yield the series as local files, which are gone afterwards."""
        store, objects = ObjectStore(self.url), self._objects()
        with scratch_folder() as folder:
            paths = {key: _file_of(key, folder / str(i)) for i, key in enumerate(objects)}
            with raise_no_scratch_space(folder):
                if headers_only:
                    store.each(lambda key: _bring_header(store, key, objects[key], paths[key]), objects)
                else:
                    store.download_all(paths)
            yield SeriesSource(self.uid, files=tuple(map(str, paths.values())), problem=self.problem)

    def _objects(self) -> dict[str, int]:
        """Return the sizes of the objects, by key."""
        if self.keys:
            return dict(zip(self.keys, self.sizes, strict=True))  # a listing would be of the whole bucket
        found = ObjectStore(self.url).find(self.prefix)
        # Of a folder that is one series only what lies directly in it, as in a local one.
        return {o.key: o.size for o in found if _is_direct(o.key, self.prefix)}


class DataBucket(DataFolder):
    """Data below a URL."""

    def __init__(self, url: str) -> None:
        self._store = ObjectStore(url)
        self.name = self._store.url

    def find_series(self, workers: int, limits: Limits = NO_LIMITS, processes: Runner | None = None) -> Inventory:
        """Find the series, as in a folder: by the folders in ``series``, else by what the objects say."""
        folders, files = self._store.folders("")
        if "series" in folders:
            inventory = self._rsna_layout()
        elif TRAIN_CSV in files:
            raise DataError(f"{self._store.url} has a train.csv but no folder series/. Is the data set complete?")
        elif not folders and not files:
            raise DataError(f"there is nothing below {self._store.url}. Name the data with --data or ANEURYSM_DATA")
        else:
            inventory = self._free_tree(workers, limits, processes)
        if not inventory.sources:
            raise DataError(f"no DICOM series below {self._store.url}: found {str(inventory.ignored) or 'no files'}")
        return inventory

    def tables(self) -> Tables:
        """Read the tables; see `aneurysm.rawdata.tables.read_tables`."""
        with self._local_tables(TRAIN_CSV, LOCALIZERS_CSV) as folder:
            return read_tables(folder)

    def demographics(self) -> dict[str, Demographics]:
        """Read ages and sexes; see `aneurysm.rawdata.demographics.read_demographics`."""
        with self._local_tables(TRAIN_CSV) as folder:
            return read_demographics(folder / TRAIN_CSV)

    @contextmanager
    def _local_tables(self, *names: str) -> Iterator[Path]:
        """Yield a folder with those tables that there are; messages name them by their URLs."""
        with scratch_folder() as folder, renaming_paths(folder, self._store.url), raise_no_scratch_space(folder):
            for name in names:
                try:
                    self._store.download(name, folder / name)
                except FileNotFoundError:
                    (folder / name).unlink()
            yield folder

    def fingerprint(self, known: DataFingerprint | None = None) -> DataFingerprint:  # noqa: ARG002 - one request each
        """Return that of the tables, by their ETags, and of the names at the top."""
        folders, files = self._store.folders("")
        objects = {name: self._store.describe(name) for name in (TRAIN_CSV, LOCALIZERS_CSV)}
        tables = {
            name: FileFingerprint(bytes=o.size, stamp="", content=o.e_tag)
            for name, o in objects.items()
            if o is not None
        }
        names = sorted(name for name in (*folders, *files) if not name.startswith("."))
        return DataFingerprint(top_level=names_hash(names), tables=tables)

    def find_masks(self) -> Mapping[str, Path | str] | None:
        """Return the URLs of the vessel masks, by series UID; None if there is nothing where they would be."""
        keys = {o.key for o in self._store.find(MASKS)}
        found: dict[str, str] = {}
        for ending in MASK_ENDINGS:
            for nested in (False, True):  # the first found counts, as in a folder
                for key in sorted(k for k in keys if k.endswith(ending)):
                    uid = key.rsplit("/", 1)[-1].removesuffix(ending)
                    if key == (f"{MASKS}/{uid}/{uid}{ending}" if nested else f"{MASKS}/{uid}{ending}"):
                        found.setdefault(uid, f"{self._store.url}/{key}")
        return found if keys else None

    def extents(self, sources: Sequence[SeriesSource]) -> Iterator[SeriesFacts]:
        """Yield how many objects and bytes each series has; a listing each, many at once."""
        return map_io(sources, lambda s: s.extent(), batch=1)

    def _rsna_layout(self) -> Inventory:
        folders, files = self._store.folders("series")
        ignored = Ignored()
        if loose := sum(not name.startswith(".") for name in files):
            ignored.add("loose files in series/", f"file 1 of {loose} by name", loose)
        names = sorted(name for name in folders if not name.startswith("."))
        uids, renamed = folder_uids(names, self.tables)

        def source(index: int) -> SeriesSource:
            uid = uids[index]
            safe = safe_source(uid)
            prefix = f"series/{renamed.get(uid, uid)}"
            return BucketSource(safe.uid, problem=safe.problem, url=self._store.url, prefix=prefix)

        return Inventory(self._store.url, "rsna", LazySequence(source, range(len(uids))), ignored)

    def _free_tree(self, workers: int, limits: Limits, processes: Runner | None) -> Inventory:
        from aneurysm.processes.map_batches import map_batches  # joblib, which its processes don't need

        objects = [o for o in self._store.find() if _is_visible(o.key)]
        # In the order in which a folder is gone through, so that the volumes are the same.
        objects.sort(key=lambda o: o.key.split("/"))
        read = partial(_file_facts, self._store.url)
        limits = Limits(None, limits.memory_mb).at_most(SCAN_MEMORY_MB)  # requests have limits of time of their own
        facts = map_batches(read, objects, _BATCH, workers, lost_facts, limits, processes)
        names = [f"/{o.key}" for o in objects]
        local, ignored = group_by_series(Path("/"), names, list(facts))
        sizes = {o.key: o.size for o in objects}
        sources: list[SeriesSource] = []
        for s in local:
            keys = tuple(name[1:] for name in s.files)
            size_of = tuple(sizes[key] for key in keys)
            sources.append(
                BucketSource(s.uid, problem=s.problem, lost=s.lost, url=self._store.url, keys=keys, sizes=size_of)
            )
        return Inventory(self._store.url, "tree", sources, ignored)


def open_data(data: str | Path) -> DataFolder:
    """Return where the data are, a folder or a URL. Raises `DataError`, of a folder as `check_level` does."""
    if is_url(data):
        return DataBucket(str(data))
    root = Path(data).absolute()
    with translate_read_errors(root):
        check_level(root)
    return DataFolder(root)


@contextmanager
def local_mask(mask: Path | str | None) -> Iterator[Path | None]:
    """Yield a vessel mask as a local file."""
    if not isinstance(mask, str):
        yield mask
        return
    folder_url, name = mask.rsplit("/", 1)
    with scratch_folder() as folder:
        with raise_no_scratch_space(folder):
            ObjectStore(folder_url).download(name, folder / name)
        yield folder / name


def _file_of(key: str, folder: Path) -> Path:
    """Return a file in ``folder`` whose name messages can use; of a long one, which a disk may not take, the end."""
    return folder / key.rsplit("/", 1)[-1][-60:]


def _file_facts(url: str, objects: Sequence[RemoteObject]) -> list[FileFacts]:
    """Return what each object is."""
    store = ObjectStore(url)
    with scratch_folder() as folder, raise_no_scratch_space(folder):
        # Not by their keys: a store may have a and a/b at once, and names that are too long for a disk.
        paths = {o.key: folder / str(i) for i, o in enumerate(objects)}

        def bring(o: RemoteObject) -> bool:
            try:
                _bring_header(store, o.key, o.size, paths[o.key])
            except FileNotFoundError:
                return False
            return True

        there = store.each(bring, objects)
        facts = iter(file_facts([str(p) for p, is_here in zip(paths.values(), there, strict=True) if is_here]))
        gone = FileFacts(lost=(Reason.READ_ERROR, "the object was there when they were listed, and is gone"))
        return [next(facts) if is_here else gone for is_here in there]


def _bring_header(store: ObjectStore, key: str, size: int, path: Path) -> None:
    """Write a file of ``size`` bytes of which the header is that of the object; of its pixels there may be a hole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if size <= _HEAD:
        path.write_bytes(store.read(key) if size else b"")
        return
    start = store.read(key, _HEAD)
    path.write_bytes(start)
    if start[128:132] != b"DICM" and start[:2] not in (b"\x08\x00", b"\x02\x00"):
        return  # no DICOM, whatever follows
    with path.open("r+b") as file:
        file.truncate(size)
    try:
        header = read_header(path)
        offset = None if header.transfer_syntax == DEFLATED else header.pixel_offset
    except NotDicomError:
        offset = None
    if offset is None or offset > _HEAD:
        store.download(key, path)


def _is_direct(key: str, prefix: str) -> bool:
    name = key.removeprefix(f"{prefix}/")
    return "/" not in name and not name.startswith(".")


def _is_visible(key: str) -> bool:
    parts = key.split("/")
    return not any(p.startswith(".") for p in parts) and not any(p.endswith(".zarr") for p in parts[:-1])
