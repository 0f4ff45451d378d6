"""open_cache(path): all that planning an epoch needs, from manifest.csv and lesions.csv; no volume is opened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from aneurysm.cache.folder import read_spec
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.local_copy import LocalCopy, RemoteVolume, download_tables, fetch_tables
from aneurysm.cache.manifest import read_manifest
from aneurysm.cache.volume import CachedVolume
from aneurysm.errors import CacheNotFoundError, DamagedCacheError
from aneurysm.labels import LABELS, SITES, UNKNOWN
from aneurysm.remote.url import checked_url, is_url
from aneurysm.spec import CacheSpec

_PAUSE_S: Final = 0.2


@dataclass(frozen=True, eq=False, repr=False)
class Cache:
    """
    The cached volumes of a cache, in the manifest's order; column arrays, so that 100,000 volumes take megabytes.

    ``cache[0]`` and ``cache["1.2.840..."]`` are volumes, ``cache[2:5]`` is a list of them, and ``uid in cache`` tells
    if there is one. Two caches are equal if they are in the same place and list the same volumes.

    Attributes
    ----------
    root
        Absolute path of the cache, or its URL in an object store.
    spec
        Of the cache.
    uids
        Series UIDs, by index.
    shapes
        (n, 3) int32: voxels along (z, y, x).
    labels
        (n, 14) uint8 in the order of `LABELS`: 0, 1, or `UNKNOWN`.
    modalities
        Names, by index.
    patient_keys
        Keyed hashes of PatientID, by index; empty where the series has none.
    unlocated
        (n, 13) bool: a lesion of this site is there, or may be, whose place is not known. No patch of the series can
        be said to be without it.
    lesion_volume
        (m,) int32: index of each placed lesion's volume, rising.
    lesion_site
        (m,) uint8: index into `SITES`.
    lesion_zyx
        (m, 3) float32: voxel coordinates, whole numbers being voxel centres.
    """

    root: Path | str
    spec: CacheSpec
    uids: list[str]
    shapes: NDArray[np.int32]
    labels: NDArray[np.uint8]
    modalities: list[str]
    patient_keys: list[str]
    unlocated: NDArray[np.bool_]
    lesion_volume: NDArray[np.int32]
    lesion_site: NDArray[np.uint8]
    lesion_zyx: NDArray[np.float32]
    outside: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    """(k, 2): volume and site of each lesion that lies beyond the volume's faces, as of one that was cropped."""
    voxel_hashes: dict[str, str] = field(default_factory=dict)
    """Of a cache in a folder, by UID: what is read is what these tables are of, or an error."""
    remote: dict[str, RemoteVolume] = field(default_factory=dict)
    """Of a cache in an object store, its volumes by UID."""

    @classmethod
    def of_tables(cls, layout: CacheLayout, fetch: Callable[[], object] = lambda: None) -> Cache:
        """Return the cache of the tables in ``layout``, which ``fetch`` gets again. Raises as `open_cache` does."""
        spec = read_spec(layout)
        table, lesions = _read_tables(layout, fetch)
        table = table[table["status"] == "cached"].reset_index(drop=True)
        if len(mixed := set(table["digest"]) - {spec.digest}):
            raise DamagedCacheError(
                f"{layout.manifest} lists volumes of digest {min(mixed)}, not {spec.digest}. Run aneurysm verify"
            )
        try:
            shapes = np.array([s.split("x") for s in table["shape"]], np.int32).reshape(len(table), 3)
            labels = table[list(LABELS)].replace("", str(UNKNOWN)).to_numpy().astype(np.uint8)
        except ValueError as error:
            raise DamagedCacheError(f"{layout.manifest} is damaged: {error}. Run aneurysm precache") from error
        index = pd.Series(np.arange(len(table), dtype=np.int32), index=table["series_uid"])
        unlocated = labels[:, :-1] != 0
        volumes, sites, places, outside = _lesions(layout.lesions, lesions, index, unlocated)
        return cls(
            layout.root, spec, table["series_uid"].tolist(), shapes, labels, table["modality"].tolist(),
            table["patient_key"].tolist(), unlocated, volumes, sites, places, outside,
            dict(zip(table["series_uid"], table["voxel_hash"], strict=True)),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.uids)

    @overload
    def __getitem__(self, index: int | str) -> CachedVolume: ...

    @overload
    def __getitem__(self, index: slice) -> list[CachedVolume]: ...

    def __getitem__(self, index: int | str | slice) -> CachedVolume | list[CachedVolume]:
        if isinstance(index, slice):
            return [self.volume(uid) for uid in self.uids[index]]
        if isinstance(index, str):
            if index not in self:
                raise KeyError(index)
            return self.volume(index)
        return self.volume(self.uids[index])

    def __iter__(self) -> Iterator[CachedVolume]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, uid: object) -> bool:
        return uid in self._known

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.uids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cache):
            return NotImplemented
        return self._identity == other._identity and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("labels", "unlocated", "lesion_volume", "lesion_site", "lesion_zyx", "outside")
        )

    def __hash__(self) -> int:
        return hash((str(self.root), self.spec.digest, len(self)))

    @property
    def _identity(self) -> tuple[object, ...]:
        return str(self.root), self.spec.digest, self.uids, self.modalities, self.patient_keys, self.voxel_hashes

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r}, {len(self)} volumes, spec {self.spec.name!r})"

    def volume(self, uid: str) -> CachedVolume:
        """
        Return a volume by its UID; whether it is there shows at its first read.

        In an object store only those in the manifest can be had, else `CacheNotFoundError` is raised.
        """
        if not isinstance(self.root, str):
            return CachedVolume(self.root, uid, voxel_hash=self.voxel_hashes.get(uid))
        if uid not in self.remote:
            raise CacheNotFoundError(f"there is no volume {uid} in the manifest of {self.root}")
        return CachedVolume(self.root, uid, self.remote[uid])

    def lesions_of(self, index: int) -> slice:
        """Return the slice of the lesion arrays that belongs to volume ``index``."""
        first, last = np.searchsorted(self.lesion_volume, [index, index + 1])
        return slice(int(first), int(last))


def open_cache(
    path: str | Path, *, local_cache: str | Path | None = None, local_cache_gb: float | None = None
) -> Cache:
    """
    Read the tables of the cache at ``path``.

    Parameters
    ----------
    path
        Its folder, or the URL of an object store (``s3://bucket/cache``).
    local_cache, local_cache_gb
        For a URL: the folder to which its volumes are copied when they are read, and how many GB they may take there.
        What is not given is as `aneurysm.cache.local_copy.LocalCopy.of` says.

    Raises
    ------
    CacheNotFoundError
        There is no cache.
    DamagedCacheError
        A table is missing or can't be read, or volumes of another digest are listed.
    CacheError
        The spec can't be read.
    StoreError
        The object store can't be read.
    """
    if is_url(path):
        return _open_remote(str(path), local_cache, local_cache_gb)
    # Of a link that is switched to another cache while a run trains, the run stays with the first.
    return Cache.of_tables(CacheLayout(Path(path).resolve()))


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        return pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' errors of parsing and of missing columns are ValueErrors
        raise DamagedCacheError(f"{path} is missing or damaged: {error}. Run aneurysm precache") from error


def _read_tables(layout: CacheLayout, fetch: Callable[[], object]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    Return manifest.csv and lesions.csv; ``fetch`` is called before they are read again.

    Raises
    ------
    DamagedCacheError
        One is missing or damaged, or lesions.csv has fewer lesions of some series than the manifest counts.
    """
    columns = ["series_uid", "status", "modality", "shape", "digest", "voxel_hash", "patient_key"]
    columns += [*LABELS, "n_lesions", "n_unplaced"]
    for last in (False, False, False, True):
        manifest = _read(layout.manifest, columns)
        lesions = _read(layout.lesions, ["series_uid", "location", "status", "reason", "z", "y", "x"])
        lost = _with_lost_lesions(layout.manifest, manifest, lesions)
        if not lost:
            break
        if last:
            raise DamagedCacheError(
                f"{layout.lesions} has fewer lesions of series {lost[0]} than {layout.manifest.name} counts. Run "
                "aneurysm verify --fix"
            )
        time.sleep(_PAUSE_S)  # a run is just writing one after the other
        fetch()
    return manifest, lesions


def _with_lost_lesions(path: Path, manifest: pd.DataFrame, lesions: pd.DataFrame) -> list[str]:
    """Return the series of which lesions.csv has fewer rows than the manifest counts."""
    short = np.zeros(len(manifest), bool)
    for column, status in (("n_lesions", "placed"), ("n_unplaced", "unplaced")):
        found = lesions["series_uid"][lesions["status"] == status].value_counts()
        try:
            expected = manifest[column].replace("", "0").astype(np.int64)
        except ValueError as error:
            raise DamagedCacheError(f"{path} is damaged: {error}. Run aneurysm precache") from error
        short |= (expected > manifest["series_uid"].map(found).fillna(0)).to_numpy()
    return [str(uid) for uid in manifest["series_uid"][short]]


def _lesions(
    path: Path, table: pd.DataFrame, index: pd.Series, unlocated: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32]]:
    """Return placed lesions by volume, and those outside; mark in ``unlocated`` which sites are settled, which open."""
    table = table[table["series_uid"].isin(index.index)]
    numbers = {site: i for i, site in enumerate(SITES)}
    known = index.loc[table["series_uid"]].to_numpy(np.int32)
    # A location that is none of the sites is never placed; it may stand for any of them.
    site_of = np.array([numbers.get(s, -1) for s in table["location"]], np.int64)
    placed = (table["status"] == "placed").to_numpy()
    outside = (table["reason"] == "outside_volume").to_numpy()
    table, volumes = table[placed], known[placed]
    order = np.argsort(volumes, kind="stable")
    try:
        sites = np.array([numbers[s] for s in table["location"]], np.uint8)
        places = table[["z", "y", "x"]].to_numpy().astype(np.float32).reshape(len(table), 3)
    except (KeyError, ValueError) as error:
        raise DamagedCacheError(f"{path} is damaged: {error}. Run aneurysm precache") from error
    # Where a lesion beyond the volume's faces lies is known: not in any patch.
    settled = (placed | outside) & (site_of >= 0)
    unlocated[known[settled], site_of[settled]] = False
    lost = ~(placed | outside)
    unlocated[known[lost & (site_of >= 0)], site_of[lost & (site_of >= 0)]] = True
    unlocated[known[lost & (site_of < 0)]] = True
    beyond = np.stack([known, site_of], axis=1)[outside & (site_of >= 0)].astype(np.int32)
    return volumes[order], sites[order], places[order], beyond


def _open_remote(url: str, local_cache: str | Path | None, local_cache_gb: float | None) -> Cache:
    """Open the cache at ``url``, whose volumes are to be copied to ``local_cache``; see `open_cache`."""
    url = checked_url(url)
    with download_tables(url) as folder:
        cache = Cache.of_tables(CacheLayout(folder), partial(fetch_tables, url, folder))
        # After that, which may have fetched them again.
        rows = {row["series_uid"]: row for row in read_manifest(CacheLayout(folder).manifest)}
        if strange := [uid for uid in rows if "/" in uid or uid.startswith(".")]:
            # It becomes a path on this machine, and came from elsewhere.
            raise DamagedCacheError(f"{url}/manifest.csv is damaged: {strange[0]!a} can't name a volume")
    copy = LocalCopy.of(local_cache, local_cache_gb)
    try:
        remote = {
            uid: RemoteVolume(
                url, uid, rows[uid]["voxel_hash"], rows[uid]["annotation_hash"], int(rows[uid]["bytes_out"]), copy
            )
            for uid in cache.uids
        }
    except ValueError as error:
        raise DamagedCacheError(f"{url}/manifest.csv is damaged: {error}. Run aneurysm precache") from error
    for largest in sorted(remote.values(), key=lambda v: v.size)[-1:]:
        largest.check_bound()
    return replace(cache, root=url, voxel_hashes={}, remote=remote)
