"""RemoteDestination: a cache that is built in an object store.

The run keeps a shadow of it in a scratch folder: the tables, the records, and of each volume an empty folder; for the
manifest also its metadata, with a hole as large as the rest. All that reads a local cache reads the shadow. Workers
build volumes in the scratch folder, and send them.

What is guaranteed: a volume is there once its root zarr.json is, which is sent last, and is taken away first. A kill
leaves objects without it, which nobody reads; the next run to build the series writes over them, and what is left
of others is removed when it is some hours old, and so nobody's work any more. There are no locks, for nobody would
know whether the holder is dead: a worker marks the series that it is at, and the marked ones are built last, by
whoever has nothing else to do. Before a series is built, and before it is sent, its worker looks whether another run
was faster. If both send it, the bytes are the same.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from aneurysm.cache.folder import prepare_cache, recorded_series, refuse_old_layout
from aneurysm.cache.layout import (
    IMAGE,
    LABEL_TREES,
    RECORD_ENDING,
    SUBFOLDERS,
    VOLUME_ENDING,
    record_key,
    volume_key,
)
from aneurysm.cache.manifest import ManifestRow
from aneurysm.cache.tables import TableCounts, write_tables
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.remote_slot import mark_key
from aneurysm.processes.children import Limits, Runner
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.remote.client import ObjectStore, RemoteObject
from aneurysm.remote.scratch import renaming_paths, scratch_folder
from aneurysm.remote.url import is_url
from aneurysm.spec import CacheSpec

ABANDONED_AFTER: Final = timedelta(hours=6)
"""So old a mark is, or the newest object of an incomplete volume, before it is taken for what a dead run left."""
_METADATA: Final = ("zarr.json", f"{IMAGE}/zarr.json")
_HOLE: Final = "rest"


@contextmanager
def open_destination(cache: str | Path) -> Iterator[Destination]:
    """Yield where the cache is, a folder or a URL."""
    if is_url(cache):
        with remote_destination(str(cache)) as place:
            yield place
    else:
        yield Destination(Path(cache).absolute())


@contextmanager
def remote_destination(url: str) -> Iterator[RemoteDestination]:
    """Yield the cache at ``url``, with a shadow that is gone afterwards."""
    store = ObjectStore(url)
    with scratch_folder() as folder, renaming_paths(folder / "cache", store.url):
        yield RemoteDestination(store, folder / "cache")


class RemoteDestination(Destination):
    """A cache in an object store, and its shadow."""

    def __init__(self, store: ObjectStore, shadow: Path) -> None:
        super().__init__(shadow)
        self.url, self._store = store.url, store
        self._shown: dict[str, str | None] = {}
        """Versions of the volumes in the shadow, by UID; None for an empty folder."""
        self._trees: dict[str, set[str]] = {}
        """Folders of labels of the volumes that have some, by UID."""
        self._incomplete: dict[str, list[RemoteObject]] = {}
        self._marks: list[RemoteObject] = []
        self._records: dict[str, tuple[str, bytes]] = {}
        """ETags and content of the records in the shadow, by UID."""
        self._parts: dict[Path, tuple[str, tuple[int, int]]] = {}
        """ETags and states of the parts of the tables in the shadow."""
        self._stored_parts: dict[str, str] = {}
        """ETags of the parts in the store, by key."""
        self._complete: dict[str, list[RemoteObject]] = {}
        """Objects of the volumes in the store, by UID."""

    def open(self, spec: CacheSpec) -> None:
        """Make the cache, or make sure that it is of ``spec``; remove what dead runs left."""
        self.refresh()
        there = self.layout.spec.exists()
        prepare_cache(self.layout, spec)
        if not there and not self._store.create(self.layout.spec.name, self.layout.spec.read_bytes()):
            # Another run was faster, whose spec counts.
            self._store.download_if_there(self.layout.spec.name, self.layout.spec)
            prepare_cache(self.layout, spec)
        self._store.delete(o.key for o in self._marks if _is_old(o) or self._is_through(o))
        for prefix in self.abandoned():
            # Listed once more, and deleted at once: another run may be sending it by now.
            objects = self._store.find(prefix)
            if _is_abandoned(objects, prefix):
                self._store.delete(o.key for o in objects)

    def _is_through(self, mark: RemoteObject) -> bool:
        """Return True if its series was sent after it was marked: the worker died before it took the mark away."""
        # Stores tell seconds: of the same one it may be the mark of who corrects the series' labels now.
        root = _root(self._complete.get(uid := mark.key.removeprefix(mark_key("")), []), uid)
        return root is not None and root.modified > mark.modified

    def open_part(self, spec: CacheSpec) -> None:
        """Make sure that the cache is of ``spec``, as `open` does; look at nothing else of it."""
        self._store.download_if_there(self.layout.spec.name, self.layout.spec)
        if self.layout.spec.exists():
            prepare_cache(self.layout, spec)
        else:
            self.open(spec)

    def volumes_among(self, uids: Sequence[str]) -> set[str]:
        """Return those of ``uids`` that have a volume now."""
        return self._existing(uids, lambda uid: f"{volume_key(uid)}/zarr.json")

    def records_among(self, uids: Sequence[str]) -> set[str]:
        """Return those of ``uids`` that are recorded as not cached now."""
        return self._existing(uids, record_key)

    def _existing(self, uids: Sequence[str], key_of: Callable[[str], str]) -> set[str]:
        """Return those of ``uids`` of which the store has the object."""
        exist = self._store.each(lambda uid: self._store.exists(key_of(uid)), uids)
        return {uid for uid, exists in zip(uids, exist, strict=True) if exists}

    def check_space(self, todo: Sequence[SeriesSource], spec: CacheSpec, processes: Runner, limits: Limits) -> None:
        """Do nothing: an object store has no end."""

    def patient_secret(self) -> bytes:
        """Return the key of patient_key, which the first run makes. Raises as `Destination.patient_secret` does."""
        while True:
            missing = [path for path in self._key_files() if not path.exists()]
            secret = super().patient_secret()
            if all(self._store.create(path.name, path.read_bytes()) for path in missing if path.exists()):
                return secret
            # Another run was faster: its key counts. What it has made stays, so that this comes to an end.

    def key_fault(self) -> str:
        """Return what is wrong with the key of patient_key, or ""."""
        self._key_files()
        return super().key_fault()

    def _key_files(self) -> tuple[Path, Path]:
        """Return the files of the key and its fingerprint, as they are in the store."""
        files = (self.layout.patient_key, self.layout.patient_key_check)
        for path in files:
            self._store.download_if_there(path.name, path)
        return files

    def write_tables(
        self,
        seconds: Mapping[str, float],
        *,
        afresh: bool = False,
        on_row: Callable[[ManifestRow], object] | None = None,
    ) -> TableCounts:
        """Derive manifest.csv and lesions.csv from what is in the store by now; see `Destination.write_tables`."""
        self.refresh()
        left = [_key_of(path) for path in self.layout.seconds.glob("*.json")]
        self._fetch_parts()
        counts = write_tables(self.layout, seconds, stamps=_RemoteStamps(self), afresh=afresh, on_row=on_row)
        self._send_parts()
        for path in (self.layout.lesions, self.layout.manifest):
            self._store.write(path.name, path)
        self._store.delete(left)
        return counts

    def _fetch_parts(self) -> None:
        """Bring the parts of the tables up to what is in the store, as of the last refresh."""
        for path in [path for path in self._parts if _key_of(path) not in self._stored_parts]:
            path.unlink(missing_ok=True)
            del self._parts[path]

        def fetch(path: Path) -> None:
            self._store.download_if_there(_key_of(path), path)
            if path.exists():
                self._parts[path] = (self._stored_parts[_key_of(path)], _state_of(path))

        self.layout.tables.mkdir(exist_ok=True)
        tags = {path: self._stored_parts.get(_key_of(path)) for path in map(self.layout.table_part, SUBFOLDERS)}
        changed = [path for path, tag in tags.items() if tag is not None and self._parts.get(path, (None,))[0] != tag]
        self._store.each(fetch, changed)

    def _send_parts(self) -> None:
        """Send the parts that were written again, and remove those that there are no more."""

        def send(path: Path) -> None:
            self._parts[path] = (self._store.write(_key_of(path), path), _state_of(path))

        paths = [path for path in map(self.layout.table_part, SUBFOLDERS) if path.exists()]
        self._store.each(send, [p for p in paths if p not in self._parts or self._parts[p][1] != _state_of(p)])
        self._store.delete(_key_of(path) for path in self._parts.keys() - set(paths))

    def stamp_of_volume(self, uid: str) -> str:
        """Return what differs if a volume's metadata or size do, as of the last refresh; empty if it is not there."""
        root = _root(self._complete.get(uid, []), uid)
        return "" if root is None or not root.e_tag else _version(self._complete[uid], uid)

    def stamp_of_record(self, uid: str) -> str:
        """Return what differs if a record does, as of the last refresh; empty if it is not there."""
        return self._records.get(uid, ("",))[0]

    def show(self, uids: Iterable[str]) -> None:
        """Fetch the metadata of these volumes into the shadow, as of the last refresh."""
        changed = [uid for uid in uids if self._shown[uid] != _version(self._complete[uid], uid)]
        self._store.each(lambda uid: self._show(uid, self._complete[uid]), changed)

    def remove_records(self, uids: Sequence[str]) -> None:
        """Remove the records of series that there are no more."""
        super().remove_records(uids)
        self._store.delete(record_key(uid) for uid in uids)
        for uid in uids:
            self._records.pop(uid, None)

    def leave_seconds(self, seconds: Mapping[str, float]) -> None:
        """Leave for the next `write_tables` how long series took."""
        before = set(self.layout.seconds.glob("*.json"))
        super().leave_seconds(seconds)
        for path in set(self.layout.seconds.glob("*.json")) - before:
            self._store.write(_key_of(path), path)

    def refresh(self, *, metadata: Iterable[str] | None = ()) -> None:
        """Send what this process recorded, and bring the shadow up to what is in the store."""
        self.send_records()
        objects = self._store.find()
        refuse_old_layout(self.url, (o.key.split("/")[1] for o in objects if o.key.startswith("volumes/")))
        volumes = _by_volume(objects)
        complete = self._complete = {uid: o for uid, o in volumes.items() if _root(o, uid) is not None}
        self._incomplete = {uid: o for uid, o in volumes.items() if uid not in complete}
        self._trees = {uid: trees for uid, o in complete.items() if (trees := _label_trees(o, uid))}
        self._stored_parts = {o.key: o.e_tag for o in objects if o.key.startswith(f"{self.layout.tables.name}/")}
        self._marks = [o for o in objects if o.key.startswith(mark_key(""))]
        for uid in self._shown.keys() - complete.keys():
            shutil.rmtree(self.layout.volume(uid), ignore_errors=True)
            del self._shown[uid]
        for uid in complete.keys() - self._shown.keys():
            self.layout.volume(uid).mkdir(parents=True)
            self._shown[uid] = None
        wanted = complete.keys() if metadata is None else complete.keys() & set(metadata)
        self.show(wanted)
        records = {uid: o for o in objects if (uid := _uid_of_record(o.key))}
        for uid in [u for u in self._records if u not in records]:
            self.layout.record(uid).unlink(missing_ok=True)
            del self._records[uid]
        self._store.each(
            self._fetch_record, [o for uid, o in records.items() if self._records.get(uid, ("",))[0] != o.e_tag]
        )
        for path in (self.layout.spec, self.layout.manifest, self.layout.lesions):
            self._store.download_if_there(path.name, path)
        left = [o.key for o in objects if o.key.startswith(f"{self.layout.seconds.name}/")]
        with suppress(FileNotFoundError):  # another run has put them into the manifest just now
            self._store.download_all({key: self.layout.root / key for key in left})

    def label_trees(self, uid: str) -> set[str]:
        """Return which folders of labels a volume has, as of the last refresh."""
        return self._trees.get(uid, set())

    def abandoned(self) -> list[str]:
        """Return what dead runs left, by its place in the store, as of the last refresh."""
        return sorted(volume_key(u) for u, objects in self._incomplete.items() if _is_abandoned(objects, volume_key(u)))

    def send_records(self) -> None:
        """Bring what this process recorded into the store."""
        for uid in sorted(recorded_series(self.layout)):
            content = self.layout.record(uid).read_bytes()
            if self._records.get(uid, ("", b""))[1] != content:
                self._records[uid] = (self._store.write(record_key(uid), content), content)

    def _show(self, uid: str, objects: Sequence[RemoteObject]) -> None:
        """Make the shadow of a volume."""
        folder, rest = self.layout.volume(uid), 0
        shutil.rmtree(folder)
        (folder / IMAGE).mkdir(parents=True)
        for o in objects:
            name = o.key.removeprefix(f"{volume_key(uid)}/")
            if name not in _METADATA:
                rest += o.size
                continue
            try:
                self._store.download(o.key, folder / name)
            except FileNotFoundError:
                shutil.rmtree(folder)
                del self._shown[uid]
                return  # taken away just now
        with (folder / IMAGE / _HOLE).open("wb") as file:
            file.truncate(rest)
        self._shown[uid] = _version(objects, uid)

    def _fetch_record(self, record: RemoteObject) -> None:
        uid = _uid_of_record(record.key)
        try:
            content = self._store.read(record.key)
        except FileNotFoundError:
            return
        self._records[uid] = (record.e_tag, content)
        path = self.layout.record(uid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class _RemoteStamps:
    """Stamps of a cache in a store: ETags, and the bytes of a volume; see `aneurysm.cache.table_parts.Stamps`."""

    def __init__(self, place: RemoteDestination) -> None:
        self.of_volume, self.of_record, self.fetch = place.stamp_of_volume, place.stamp_of_record, place.show


def _state_of(path: Path) -> tuple[int, int]:
    """Return what differs if a file was replaced."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _key_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _by_volume(objects: Iterable[RemoteObject]) -> dict[str, list[RemoteObject]]:
    found = defaultdict(list)
    for o in objects:
        _, name, *_ = *o.key.removeprefix("volumes/").split("/", 2), ""
        uid = name.removesuffix(VOLUME_ENDING)
        if o.key.startswith(f"{volume_key(uid)}/"):
            found[uid].append(o)
    return found


def _uid_of_record(key: str) -> str:
    """Return the series of whose record an object is; empty if it is something else."""
    uid = key.rsplit("/", 1)[-1].removesuffix(RECORD_ENDING)
    return uid if key == record_key(uid) else ""


def _root(objects: Sequence[RemoteObject], uid: str) -> RemoteObject | None:
    return next((o for o in objects if o.key == f"{volume_key(uid)}/zarr.json"), None)


def _label_trees(objects: Sequence[RemoteObject], uid: str) -> set[str]:
    tops = {o.key.removeprefix(f"{volume_key(uid)}/").split("/", 1)[0] for o in objects}
    return tops & set(LABEL_TREES)


def _version(objects: Sequence[RemoteObject], uid: str) -> str:
    """Return what differs if a volume's metadata or size do."""
    root = _root(objects, uid)
    return "" if root is None else f"{root.e_tag} {sum(o.size for o in objects)}"


def _is_abandoned(objects: Sequence[RemoteObject], prefix: str) -> bool:
    """Return True if there are objects of a volume, without its root metadata, and all of them old."""
    if not objects or any(o.key == f"{prefix}/zarr.json" for o in objects):
        return False
    return all(_is_old(o) for o in objects)


def _is_old(found: RemoteObject) -> bool:
    return found.modified < datetime.now(UTC) - ABANDONED_AFTER
