"""RemoteSlot: the place of one series in an object store. remote_destination.py says what is guaranteed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from aneurysm.cache.layout import IMAGE, LABEL_TREES, CacheLayout, record_key, volume_key
from aneurysm.cache.manifest import parse_shape
from aneurysm.cache.metadata import Record
from aneurysm.errors import StoreError
from aneurysm.precaching.publish import claim
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.remote.client import ObjectStore
from aneurysm.remote.scratch import held, scratch_folder


def mark_key(uid: str) -> str:
    """Return the key of the mark that somebody is at a series."""
    return f".building/{uid}"


@contextmanager
def open_remote_slot(shadow: Path, url: str, uid: str, *, insist: bool) -> Iterator[RemoteSlot | None]:
    """Yield the slot of a series at ``url``; see `aneurysm.precaching.slot.open_slot`."""
    with (
        _working_folder(shadow) as root,
        translate_write_errors(root),
        claim(CacheLayout(root), uid) as folder,
    ):
        if folder is None:
            yield None
            return
        slot = RemoteSlot(url, uid, folder)
        with slot.marked(insist=insist) as ours:
            yield slot if ours else None


@contextmanager
def _working_folder(shadow: Path) -> Iterator[Path]:
    """Yield the run's shadow to build in, which tells who builds what on this machine; on another, a folder apart."""
    if shadow.is_dir():
        with held(shadow.parent):
            yield shadow
    else:
        with scratch_folder() as folder:
            (root := folder / shadow.name).mkdir()
            yield root


class RemoteSlot:
    """A slot in an object store; what is built in ``folder`` is sent."""

    def __init__(self, url: str, uid: str, folder: Path) -> None:
        self._store, self._uid, self._folder = ObjectStore(url), uid, folder

    @property
    def folder(self) -> Path:
        """See `aneurysm.precaching.slot.VolumeSlot.folder`."""
        return self._folder

    @contextmanager
    def marked(self, *, insist: bool) -> Iterator[bool]:
        """Mark the series as one that is being built; False if it was so already, unless we ``insist``."""
        mark = mark_key(self._uid)
        if not self._store.create(mark, b"") and not insist:
            yield False
            return
        try:
            yield True
        finally:
            with suppress(StoreError):  # what is left of it changes nothing but an order
                self._store.delete([mark])

    def is_done(self, *, retry: bool) -> bool:
        """See `aneurysm.precaching.slot.VolumeSlot.is_done`."""
        return self.has_volume() or (not retry and self._store.exists(record_key(self._uid)))

    def has_volume(self) -> bool:
        """See `aneurysm.precaching.slot.VolumeSlot.has_volume`."""
        return self._store.exists(f"{volume_key(self._uid)}/zarr.json")

    def publish(self, built: Path, *, replace: bool) -> None:
        """Send the volume, its root metadata last, and remove the record of why it was not there."""
        prefix = volume_key(self._uid)
        files = {f"{prefix}/{p.relative_to(built).as_posix()}": p for p in built.rglob("*") if p.is_file()}
        root = f"{prefix}/zarr.json"
        there = {o.key for o in self._store.find(prefix)}
        if root not in there or replace:
            # Invisible from here on. What has a name that will be written again is left, for another run may be at it.
            self._store.delete([root] if root in there else [])
            self._store.delete(there - files.keys())
            self._send(files, files.keys() - {root})
            # A run that took what we found here for a dead run's may have deleted it while we wrote over it.
            self._send(files, files.keys() - {root} - {o.key for o in self._store.find(prefix)})
            self._store.write(root, files[root])
        self._store.delete([record_key(self._uid)])

    def _send(self, files: Mapping[str, Path], keys: Iterable[str]) -> None:
        self._store.each(lambda key: self._store.write(key, files[key]), sorted(keys))

    def record(self, record: Record, *, replace: bool) -> None:
        """Send the record of why there is no volume; with ``replace`` take away the one that is there."""
        self._store.write(record_key(self._uid), record.to_json().encode())
        if replace:
            keys = [o.key for o in self._store.find(volume_key(self._uid))]
            self._store.delete(k for k in keys if k == f"{volume_key(self._uid)}/zarr.json")
            self._store.delete(keys)

    def files(self) -> RemoteFiles:
        """See `aneurysm.precaching.slot.VolumeSlot.files`."""
        return RemoteFiles(self._store, self._uid)


class RemoteFiles:
    """The files of a volume that may be changed, in a store; see `aneurysm.precaching.slot.VolumeFiles`."""

    def __init__(self, store: ObjectStore, uid: str) -> None:
        self._store, self._prefix = store, volume_key(uid)

    def read_metadata(self) -> bytes:
        """Return zarr.json."""
        return self._store.read(f"{self._prefix}/zarr.json")

    def write_metadata(self, content: bytes) -> None:
        """Replace zarr.json in one step."""
        self._store.write(f"{self._prefix}/zarr.json", content)

    def shape(self) -> list[int]:
        """Return the voxels along (z, y, x)."""
        return parse_shape(self._store.read(f"{self._prefix}/{IMAGE}/zarr.json"))

    def trees(self) -> set[str]:
        """Return which folders of labels there are."""
        return {tree for tree in LABEL_TREES if self._keys(tree)}

    def read_tree(self, tree: str) -> dict[str, bytes]:
        """Return the files of a folder."""
        keys = self._keys(tree)
        return dict(zip((self._name(key, tree) for key in keys), self._store.each(self._store.read, keys), strict=True))

    def write_tree(self, tree: str, files: Mapping[str, bytes]) -> None:
        """Put a folder in place of the one that is there, file by file."""
        self._store.each(lambda item: self._store.write(f"{self._prefix}/{tree}/{item[0]}", item[1]), files.items())
        self._store.delete(key for key in self._keys(tree) if self._name(key, tree) not in files)

    def remove_tree(self, tree: str) -> None:
        """Remove a folder."""
        self._store.delete(self._keys(tree))

    def _keys(self, tree: str) -> list[str]:
        return [o.key for o in self._store.find(f"{self._prefix}/{tree}")]

    def _name(self, key: str, tree: str) -> str:
        return key.removeprefix(f"{self._prefix}/{tree}/")
