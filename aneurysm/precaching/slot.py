"""VolumeSlot: the place of one series in a cache that is being built, while one worker holds it.

A worker asks here whether the series is done, builds in `VolumeSlot.folder`, and publishes what it built, or records
why there is nothing. The slot knows whether the cache is a folder (here) or an object store (remote_slot.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aneurysm.cache.folder import is_done
from aneurysm.cache.layout import CacheLayout, label_trees
from aneurysm.cache.manifest import shape_of
from aneurysm.cache.metadata import Record
from aneurysm.precaching.publish import claim, publish, publish_file, publish_record, publish_tree, set_aside
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.processes.files import tree_files


class VolumeFiles(Protocol):
    """The files of one volume that may be changed; a folder (``tree``) of it is replaced or removed as a whole."""

    def read_metadata(self) -> bytes:
        """Return zarr.json. Raises `FileNotFoundError`."""

    def write_metadata(self, content: bytes) -> None:
        """Replace zarr.json in one step."""

    def shape(self) -> list[int]:
        """Return the voxels along (z, y, x)."""

    def trees(self) -> set[str]:
        """Return which of `aneurysm.cache.layout.LABEL_TREES` there are."""

    def read_tree(self, tree: str) -> dict[str, bytes]:
        """Return the files of a folder, by their names in it."""

    def write_tree(self, tree: str, files: Mapping[str, bytes]) -> None:
        """Put a folder in place of the one that is there."""

    def remove_tree(self, tree: str) -> None:
        """Remove a folder."""


class VolumeSlot(Protocol):
    """What a worker asks of the place of its series. It is held by one worker alone."""

    @property
    def folder(self) -> Path:
        """An empty folder of this machine to build in; it is gone when the slot is released."""

    def is_done(self, *, retry: bool) -> bool:
        """Return True if there is a volume, or a record of why there is none, which does not count with ``retry``."""

    def has_volume(self) -> bool:
        """Return True if there is a volume."""

    def publish(self, built: Path, *, replace: bool) -> None:
        """Put the volume ``built`` into the cache, unless one is there already; with ``replace`` in its place."""

    def record(self, record: Record, *, replace: bool) -> None:
        """Write down why there is no volume; with ``replace`` take away the one that is there."""

    def files(self) -> VolumeFiles:
        """Return the files of the volume that is there."""


@contextmanager
def open_slot(cache: Path, url: str, uid: str, *, insist: bool = False) -> Iterator[VolumeSlot | None]:
    """
    Yield the slot of a series; None if another worker holds it.

    Parameters
    ----------
    cache
        The folder of the cache, or of the run's shadow of one in an object store.
    url
        Where that cache is, if it is in an object store; else empty.
    insist
        Take it also if another run at the same store seems to hold it.

    Raises
    ------
    NoSpaceError, CacheError, StoreError
        It can't be written to.
    """
    if url:
        from aneurysm.precaching.remote_slot import open_remote_slot

        with open_remote_slot(cache, url, uid, insist=insist) as slot:
            yield slot
        return
    layout = CacheLayout(cache)
    with translate_write_errors(cache), claim(layout, uid) as claimed:
        yield None if claimed is None else LocalSlot(layout, uid, claimed)


@dataclass(frozen=True)
class LocalSlot:
    """A slot in a folder; ``folder`` is that of the claim on it, on the same disk."""

    layout: CacheLayout
    uid: str
    folder: Path

    def is_done(self, *, retry: bool) -> bool:
        """See `VolumeSlot.is_done`."""
        return self.has_volume() if retry else is_done(self.layout, self.uid)

    def has_volume(self) -> bool:
        """See `VolumeSlot.has_volume`."""
        return self.layout.volume(self.uid).exists()

    def publish(self, built: Path, *, replace: bool) -> None:
        """See `VolumeSlot.publish`."""
        publish(built, self.layout.volume(self.uid), self.folder if replace else None)
        self.layout.record(self.uid).unlink(missing_ok=True)

    def record(self, record: Record, *, replace: bool) -> None:
        """See `VolumeSlot.record`."""
        publish_record(self.layout, record)
        if replace:
            set_aside(self.layout.volume(self.uid), self.folder)

    def files(self) -> LocalFiles:
        """See `VolumeSlot.files`."""
        return LocalFiles(self.layout.volume(self.uid), self.folder)


@dataclass(frozen=True)
class LocalFiles:
    """The files of a volume in a folder; ``claimed`` is the folder of the claim on it, and on the same disk."""

    volume: Path
    claimed: Path

    def read_metadata(self) -> bytes:
        """Return zarr.json."""
        return (self.volume / "zarr.json").read_bytes()

    def write_metadata(self, content: bytes) -> None:
        """Replace zarr.json in one step."""
        publish_file(content, self.volume / "zarr.json", self.claimed)

    def shape(self) -> list[int]:
        """Return the voxels along (z, y, x)."""
        return shape_of(self.volume)

    def trees(self) -> set[str]:
        """Return which folders of labels there are."""
        return label_trees(self.volume)

    def read_tree(self, tree: str) -> dict[str, bytes]:
        """Return the files of a folder."""
        return read_files(self.volume / tree)

    def write_tree(self, tree: str, files: Mapping[str, bytes]) -> None:
        """Put a folder in place of the one that is there; between the two there is none."""
        publish_tree(files, self.volume / tree, self.claimed)

    def remove_tree(self, tree: str) -> None:
        """Remove a folder."""
        publish_tree(None, self.volume / tree, self.claimed)


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in ``folder`` and below, by name."""
    return {name: (folder / name).read_bytes() for name, _ in tree_files(folder)}
