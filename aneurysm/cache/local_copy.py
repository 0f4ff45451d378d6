"""RemoteVolume: one volume of a cache in an object store, and its bounded copy on this machine's disk.

    DIR/
      .lock                               held while room is made, so that the bound holds for all processes together
      volumes/<key>-<bytes>/<uid>.zarr    complete, since it was renamed into place; its folder's time is its last use
      fetching/<key>-<bytes>/, .lock      on its way, by whoever holds the lock; counts already

The key is a hash of URL, series and content: a volume that was built again is another one, and so is one whose
annotations were corrected. What was fetched is compared with its hashes before it is renamed. Beyond the bound the
least recently used volumes go; whoever has one of them open reads on, for a map outlives its file's name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aneurysm.cache.layout import CacheLayout, volume_key
from aneurysm.cache.metadata import VolumeMetadata, find_damage, parse_document, read_document_bytes
from aneurysm.errors import CacheError, CacheNotFoundError, DamagedCacheError, UsageError
from aneurysm.processes.files import flush_tree, raise_no_space
from aneurysm.processes.locks import is_locked, locked
from aneurysm.processes.shared_folder import make_folder, share_tree
from aneurysm.remote.client import ObjectStore
from aneurysm.remote.scratch import renaming_paths, scratch_folder
from aneurysm.remote.url import checked_url

DEFAULT_GB: Final = 100.0
_SHARE: Final = 0.9
"""Of the disk's free space, and of what the copy takes already, it takes no more, whatever the bound."""
_WAIT_S: Final = 0.05
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class LocalCopy:
    """Where copies of volumes are kept, and how many bytes they may take together."""

    folder: Path
    most_bytes: int

    @classmethod
    def of(cls, folder: str | Path | None = None, gigabytes: float | None = None) -> LocalCopy:
        """
        Return the local copy in ``folder``, of at most this many GB (1e9 bytes).

        What is not given is taken from ANEURYSM_LOCAL_CACHE and ANEURYSM_LOCAL_CACHE_GB, else it is ``aneurysm`` in the
        user's cache folder (XDG_CACHE_HOME, or ~/.cache), and 100 GB; in any case no more than 90 % of the disk's
        free space.

        Raises
        ------
        UsageError
            The folder can't be made, or the number is none above 0.
        """
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aneurysm"
        given = folder or os.environ.get("ANEURYSM_LOCAL_CACHE") or usual
        text = gigabytes if gigabytes is not None else os.environ.get("ANEURYSM_LOCAL_CACHE_GB") or DEFAULT_GB
        try:
            most = float(text)
        except ValueError:
            most = 0.0
        if not 0 < most < float("inf"):
            raise UsageError(
                f"a local copy of {text} GB (--local-cache-gb, ANEURYSM_LOCAL_CACHE_GB): give a number above 0"
            )
        place = Path(given).expanduser().absolute()
        try:
            for name in ("volumes", "fetching"):
                place.mkdir(parents=True, exist_ok=True)
                make_folder(place / name)
            free = shutil.disk_usage(place).free
        except OSError as error:
            raise UsageError(
                f"the folder for local copies of volumes, {place}, can't be made: {error.strerror}. Name another with "
                "--local-cache or ANEURYSM_LOCAL_CACHE"
            ) from error
        taken = sum(size for size, _, _ in _entries(place / "volumes"))
        return cls(place, min(int(most * 1e9), int(_SHARE * (free + taken))))


@dataclass(frozen=True, slots=True)
class RemoteVolume:
    """A volume in an object store. ``size`` is in bytes; it and the hashes are what the manifest says."""

    url: str
    uid: str
    voxel_hash: str
    annotation_hash: str
    size: int
    copy: LocalCopy

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.url}/{volume_key(self.uid)}"

    @property
    def path(self) -> Path:
        """Where its copy is, once it was fetched."""
        return self.copy.folder / "volumes" / self._entry / f"{self.uid}.zarr"

    @property
    def _entry(self) -> str:
        names = (self.url, self.uid, self.voxel_hash, self.annotation_hash)
        key = hashlib.sha256("\0".join(names).encode()).hexdigest()[:32]
        return f"{key}-{self.size}"

    def fetch(self) -> Path:
        """
        Make sure that the volume is here, and mark it as used; return its folder.

        Raises
        ------
        CacheNotFoundError
            There is no such volume, or not any more.
        DamagedCacheError
            It is not what the manifest says, also when it is fetched again.
        StoreError
            The store can't be read.
        UsageError
            The local copy is smaller than this volume.
        NoSpaceError
            The disk is full.
        """
        if self._mark_used():
            return self.path
        with (
            locked(self.copy.folder / "fetching" / f"{self._entry}.lock"),
            raise_no_space(self.copy.folder, "Free some, or name another folder with --local-cache"),
        ):
            # Another process may have fetched it meanwhile.
            if not self._mark_used():
                part = self.copy.folder / "fetching" / self._entry
                try:
                    self._reserve(part)
                    self._bring(part / f"{self.uid}.zarr")
                    share_tree(part, part.parent)
                    flush_tree(part)
                    part.rename(self.path.parent)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
        return self.path

    def _mark_used(self) -> bool:
        try:
            os.utime(self.path.parent)
        except FileNotFoundError:
            return False
        return True

    def _reserve(self, part: Path) -> None:
        """Make room, and take it by the folder that the volume is fetched to."""
        self.check_bound()
        shutil.rmtree(part, ignore_errors=True)  # a dead process was at it
        while True:
            with locked(self.copy.folder / ".lock", keep=True):
                if _make_room(self.copy, self.size):
                    make_folder(part)
                    return
            time.sleep(_WAIT_S)  # all of it is on its way; what has arrived may go

    def check_bound(self) -> None:
        """Raise `UsageError` if the local copy is smaller than this volume."""
        if self.size > self.copy.most_bytes:
            raise UsageError(
                f"{self.name} has {self.size / 1e9:.6g} GB, and its local copy {self.copy.folder} may take "
                f"{self.copy.most_bytes / 1e9:.6g} GB in all. Give more with --local-cache-gb"
            )

    def _bring(self, folder: Path) -> None:
        fault = ""
        # Again, if it was replaced while it was read, or a disk or net did it harm.
        for _ in range(_TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            try:
                download_volume(ObjectStore(self.url), self.uid, folder)
                content = read_document_bytes(folder)
                document = parse_document(content, f"{self.name}/zarr.json")
                fault = "; ".join(find_damage(folder, document, content))
            except CacheNotFoundError:
                raise
            except (CacheError, OSError) as error:
                fault = str(error).replace(str(folder), self.name)
                continue
            if not fault:
                # Other annotations are none the worse: what they were when the manifest was read, nobody has any more.
                if document.own.voxel_hash == self.voxel_hash:
                    return
                fault = "its voxel hash differs from the manifest's: it was built again since the manifest was read"
        raise DamagedCacheError(f"{self.name} is not what it should be: {fault}. Run aneurysm verify on the cache")


def download_volume(store: ObjectStore, uid: str, folder: Path) -> None:
    """Write the objects of a volume to ``folder``. Raises `CacheNotFoundError` if it is not there, or not complete."""
    prefix = volume_key(uid)
    keys = [o.key for o in store.find(prefix)]
    if f"{prefix}/zarr.json" not in keys:
        raise CacheNotFoundError(f"there is no volume {store.url}/{prefix}")
    try:
        store.download_all({key: folder / key.removeprefix(f"{prefix}/") for key in keys})
    except FileNotFoundError as error:
        raise CacheNotFoundError(f"{store.url}/{prefix} was taken away while it was read ({error})") from error


def _make_room(copy: LocalCopy, needed: int) -> bool:
    """Remove the least recently used volumes until ``needed`` bytes fit; False if what is on its way leaves no room."""
    coming = 0
    for size, _, path in _entries(copy.folder / "fetching"):
        if is_locked(path.with_name(f"{path.name}.lock")):
            coming += size
        else:
            shutil.rmtree(path, ignore_errors=True)  # its owner is dead
    there = sorted(_entries(copy.folder / "volumes"), key=lambda e: e[1])
    total = coming + sum(size for size, _, _ in there)
    for size, _, path in there:
        if total + needed <= copy.most_bytes:
            break
        gone = copy.folder / "fetching" / f"{path.name}.gone"
        # Renamed first: a volume is there as a whole, or not at all.
        with suppress(FileNotFoundError):
            path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        total -= size
    return total + needed <= copy.most_bytes


def _entries(folder: Path) -> Iterator[tuple[int, float, Path]]:
    """Yield size, last use and path of what is in a folder; names tell the sizes."""
    with os.scandir(folder) as entries:
        for entry in entries:
            size = entry.name.removesuffix(".gone").rsplit("-", 1)[-1]
            if size.isdigit():
                with suppress(FileNotFoundError):
                    yield int(size), entry.stat().st_mtime, Path(entry.path)


@contextmanager
def download_tables(url: str) -> Iterator[Path]:
    """Yield a folder with spec.toml, manifest.csv and lesions.csv of the cache at ``url``; those that exist."""
    url = checked_url(url)
    with scratch_folder() as folder:
        fetch_tables(url, folder)
        with renaming_paths(folder, url):
            yield folder


def fetch_tables(url: str, folder: Path) -> None:
    """Download spec.toml, manifest.csv and lesions.csv of the cache at ``url`` to ``folder``; those that exist."""
    store, layout = ObjectStore(url), CacheLayout(folder)
    tables = (layout.spec, layout.manifest, layout.lesions)
    store.each(lambda path: store.download_if_there(path.name, path), tables)


def read_remote_metadata(url: str, uids: Sequence[str]) -> list[VolumeMetadata | CacheError]:
    """Return what volumes say of themselves, or what is wrong with them; no voxels are downloaded."""
    store = ObjectStore(url)

    def read(uid: str) -> VolumeMetadata | CacheError:
        key = f"{volume_key(uid)}/zarr.json"
        try:
            return parse_document(store.read(key), f"{url}/{key}").own
        except FileNotFoundError:
            return CacheError(f"{url}/{key} is missing")
        except CacheError as error:
            return error

    return store.each(read, uids)
