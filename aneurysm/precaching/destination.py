"""Destination: where a cache that is being built is. A folder here; a URL in aneurysm.precaching.remote_destination."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from aneurysm.cache.folder import key_fault, patient_secret, prepare_cache
from aneurysm.cache.layout import CacheLayout, label_trees
from aneurysm.cache.manifest import ManifestRow, leave_seconds
from aneurysm.cache.tables import TableCounts, write_tables
from aneurysm.precaching.disk_space import check_space
from aneurysm.precaching.publish import abandoned
from aneurysm.processes.children import Limits, Runner
from aneurysm.processes.threads import map_io
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.spec import CacheSpec


class Destination:
    """
    A cache in a folder.

    Attributes
    ----------
    layout
        What the run sees of the cache, and where its workers build.
    url
        Where workers send what they have built; empty if it is there already.
    """

    url = ""

    def __init__(self, root: Path) -> None:
        self.layout = CacheLayout(root)

    @property
    def name(self) -> str:
        """The folder, or the URL."""
        return self.url or str(self.layout.root)

    def open(self, spec: CacheSpec) -> None:
        """Make the cache, or make sure that it is of ``spec``."""
        prepare_cache(self.layout, spec)

    def open_part(self, spec: CacheSpec) -> None:
        """Make sure that the cache is of ``spec``, as `open` does; look at nothing else of it."""
        self.open(spec)

    def volumes_among(self, uids: Sequence[str]) -> set[str]:
        """Return those of ``uids`` that have a volume now."""
        return _marked(uids, map_io(uids, lambda uid: self.layout.volume(uid).exists()))

    def records_among(self, uids: Sequence[str]) -> set[str]:
        """Return those of ``uids`` that are recorded as not cached now."""
        return _marked(uids, map_io(uids, lambda uid: self.layout.record(uid).exists()))

    def send_records(self) -> None:
        """Bring what this process recorded to its place, if it is not there yet."""

    def refresh(self, *, metadata: Iterable[str] | None = ()) -> None:
        """Bring ``layout`` up to what is there, and the ``metadata`` of these volumes; None is all of them."""

    def label_trees(self, uid: str) -> set[str]:
        """Return which folders of labels a volume has: ``labels``, and ``labels.next`` of one that is replaced."""
        return label_trees(self.layout.volume(uid))

    def abandoned(self) -> list[str]:
        """Return what dead runs left, by its place in the cache."""
        return [f".building/{uid}" for uid in abandoned(self.layout)]

    def check_space(self, todo: Sequence[SeriesSource], spec: CacheSpec, processes: Runner, limits: Limits) -> None:
        """Raise `NoSpaceError` if ``todo``, in order of size, will not fit."""
        check_space(todo, spec, self.layout.root, processes, limits)

    def patient_secret(self) -> bytes:
        """Return the key of patient_key."""
        return patient_secret(self.layout)

    def remove_records(self, uids: Sequence[str]) -> None:
        """Remove the records of series that there are no more."""
        for uid in uids:
            self.layout.record(uid).unlink(missing_ok=True)

    def key_fault(self) -> str:
        """Return what is wrong with the key of patient_key, or ""."""
        return key_fault(self.layout)

    def leave_seconds(self, seconds: Mapping[str, float]) -> None:
        """Leave for the next `write_tables` how long series took."""
        leave_seconds(self.layout, seconds)

    def write_tables(
        self,
        seconds: Mapping[str, float],
        *,
        afresh: bool = False,
        on_row: Callable[[ManifestRow], object] | None = None,
    ) -> TableCounts:
        """Derive manifest.csv and lesions.csv from what is there; see `aneurysm.cache.tables.write_tables`."""
        return write_tables(self.layout, seconds, afresh=afresh, on_row=on_row)


def _marked(uids: Sequence[str], marks: Iterable[bool]) -> set[str]:
    return {uid for uid, mark in zip(uids, marks, strict=True) if mark}
