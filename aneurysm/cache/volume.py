"""CachedVolume: boxes of voxels from the chunks of one volume, by whatever thread, process or pickle asks.

A volume is opened at its first read; open ones are kept up to a bound, and the least recently used is let go. Who reads
on while a volume is replaced sees the old voxels until the handle is let go; then, if it came from a `Cache`, which
knows the hash of its voxels, an error: old and new ones are never mixed.

A volume of a cache in an object store is copied to this machine's disk when it is opened, and read from there.

Handles may be used by threads, before and after a fork, and pickled: what travels is an absolute path and a UID.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from aneurysm.annotations.lesions import Lesion
from aneurysm.cache.layout import IMAGE, CacheLayout
from aneurysm.cache.metadata import VolumeMetadata, parse_document
from aneurysm.cache.shard import ShardReader, shard_layout
from aneurysm.documents import MOST_JSON, parse_json
from aneurysm.errors import CacheError, CacheNotFoundError, DamagedCacheError
from aneurysm.processes.shared_folder import describe_denial
from aneurysm.types import Triple, triple
from aneurysm.volume.blocks import Blocks, Survey
from aneurysm.volume.cells import cells_shape, expand_cells
from aneurysm.volume.intensity import Intensity, to_model_units, to_physical

if TYPE_CHECKING:
    from aneurysm.cache.local_copy import RemoteVolume

_TRIES: Final = 20
"""Looks at a volume that is replaced while it is opened."""


class _Handles:
    """Open volumes, the least recently used let go beyond a bound; what is in use stays open until it is done."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, VolumeHandle] = OrderedDict()
        self._lock = threading.Lock()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Two files a volume, three where bone is read; the process needs descriptors for other things, too.
        self.most = max(4, min(512, (soft if soft > 0 else 1024) // 8))

    def get(self, volume: CachedVolume, *, bone: bool = False) -> VolumeHandle:
        """Return the open volume; with ``bone`` one in which its label of bone is open, too, if there is one."""
        path = volume._path  # noqa: SLF001
        with self._lock:
            found = self._open.get(path)
            complete = found is not None and not (bone and found.metadata.bone and found.bone is None)
            if found is not None and complete and _has_voxels(found, volume.voxel_hash):
                self._open.move_to_end(path)
                return found
        remote = volume.remote
        opened = open_volume(path, bone=bone) if remote is None else self._open_remote_copy(remote, bone=bone)
        if not _has_voxels(opened, volume.voxel_hash):
            raise DamagedCacheError(
                f"volume {volume.uid} is not the one that the cache's manifest.csv named when it was opened: it was "
                "built again, or the cache replaced by another one. If it is opened again, and says so still, run "
                "aneurysm verify"
            )
        with self._lock:
            self._open[path] = opened
            while len(self._open) > self.most:
                self._open.popitem(last=False)
        return opened

    def _open_remote_copy(self, remote: RemoteVolume, *, bone: bool) -> VolumeHandle:
        # What others removed from the local copy to make room takes its room until it is closed.
        with self._lock:
            for path in [p for p in self._open if not p.exists()]:
                del self._open[path]
        try:
            return open_volume(remote.fetch(), bone=bone)
        except CacheNotFoundError:
            return open_volume(remote.fetch(), bone=bone)  # it had to make room between the two

    def clear(self) -> None:
        with self._lock:
            self._open.clear()

    def after_fork(self) -> None:
        # Another thread of the parent may have held it; here nobody will ever release it.
        self._lock = threading.Lock()


def _has_voxels(opened: VolumeHandle, voxel_hash: str | None) -> bool:
    return voxel_hash is None or opened.metadata.voxel_hash == voxel_hash


_handles = _Handles()


os.register_at_fork(after_in_child=_handles.after_fork)


def close_volumes() -> None:
    """Let go of all open volumes of this process; the next read opens them again."""
    _handles.clear()


class CachedVolume:
    """
    One volume of a cache, opened at the first read.

    Parameters
    ----------
    root
        The cache's folder.
    uid
        The series.
    remote
        The volume in an object store, which is copied to this machine's disk as a whole; see `open_cache`. ``root`` is
        not used then.
    voxel_hash
        Of the volume that it must be; None: of any.
    """

    __slots__ = ("_path", "remote", "uid", "voxel_hash")

    def __init__(
        self, root: str | Path, uid: str, remote: RemoteVolume | None = None, *, voxel_hash: str | None = None
    ) -> None:
        self.uid, self.remote, self.voxel_hash = uid, remote, voxel_hash
        self._path = CacheLayout(Path(root).absolute()).volume(uid) if remote is None else remote.path

    def __repr__(self) -> str:
        return f"CachedVolume({self.name!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CachedVolume):
            return NotImplemented
        return (self.name, self.voxel_hash) == (other.name, other.voxel_hash)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def name(self) -> str:
        """How messages call it: its folder or URL."""
        return str(self._path) if self.remote is None else self.remote.name

    @property
    def path(self) -> Path:
        """The volume's folder, or that of its local copy."""
        return self._path

    @property
    def metadata(self) -> VolumeMetadata:
        """All that is known of the volume but its voxels; see docs/cache.md."""
        return _handles.get(self).metadata

    @property
    def intensity(self) -> Intensity:
        """What the stored integers mean."""
        return self.metadata.intensity

    @property
    def shape(self) -> Triple:
        """Voxels along (z, y, x)."""
        return _handles.get(self).image.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored integers."""
        return _handles.get(self).image.dtype

    @property
    def ndim(self) -> int:
        """Axes: 3."""
        return 3

    @property
    def chunks(self) -> Triple:
        """Voxels of a chunk along (z, y, x): what a read decodes at least."""
        return _handles.get(self).image.chunks

    @property
    def fill(self) -> int:
        """Stored value of air, which pads what is read outside the volume."""
        return _handles.get(self).image.fill

    @property
    def affine_lps(self) -> NDArray[np.float64]:
        """(4, 4): (z, y, x, 1) to (x, y, z, 1) in LPS mm, voxel centres."""
        return self.metadata.affine

    @property
    def affine_ras(self) -> NDArray[np.float64]:
        """(4, 4), for tools of the NIfTI world: (x, y, z, 1), the array's axes reversed, to (x, y, z, 1) in RAS mm."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine_lps[:, [2, 1, 0, 3]]

    @property
    def lesions(self) -> tuple[Lesion, ...]:
        """Lesions that have a voxel in the volume."""
        return self.metadata.lesions

    @property
    def blocks(self) -> Blocks:
        """What lies where. Raises `DamagedCacheError` if the metadata lacks it."""
        opened = _handles.get(self)
        if opened.blocks is None:
            try:
                opened.blocks = opened.metadata.head_and_vessels()
            except ValueError as error:
                raise self._bad_blocks(error) from error
        return opened.blocks

    @property
    def survey(self) -> Survey:
        """What lies where by the voxels alone, whatever the annotations. Raises as `blocks` does."""
        opened = _handles.get(self)
        if opened.survey is None:
            try:
                opened.survey = Survey.unpack(opened.metadata.blocks)
            except ValueError as error:
                raise self._bad_blocks(error) from error
        return opened.survey

    def _bad_blocks(self, error: ValueError) -> DamagedCacheError:
        return DamagedCacheError(
            f"volume {self.uid}: the metadata's blocks are missing or damaged ({type(error).__name__}). "
            f"Rebuild it: aneurysm precache --overwrite --series {self.uid}"
        )

    @property
    def has_vessels(self) -> bool:
        """Whether there is a vessel mask."""
        return _handles.get(self).vessels is not None

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """
        Return stored integers, as numpy does: ``volume[40:136, 60:156, :]``, ``volume[50]``, ``volume[..., ::2]``.

        Only the chunks in question are decoded. Keys are integers, slices and an ellipsis.

        Raises
        ------
        IndexError
            A key is beyond the volume, or of another kind.
        """
        # numpy's rules, of an array of this shape that takes no memory.
        view = np.broadcast_to(np.uint8(0), self.shape)
        keys = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(k, int | np.integer | slice) or k is Ellipsis for k in keys):
            raise IndexError(f"a volume is indexed by integers, slices and an ellipsis, not by {key!r}")
        shape = view[key].shape
        rest = [slice(None)] * (3 - sum(k is not Ellipsis for k in keys))
        at = keys.index(Ellipsis) if Ellipsis in keys else len(keys)
        full = [*keys[:at], *rest, *keys[at + 1 :]]
        ranges = [
            range(n)[k] if isinstance(k, slice) else range(int(k) % n, int(k) % n + 1)
            for k, n in zip(full, self.shape, strict=True)
        ]
        if 0 in map(len, ranges):
            return np.empty(shape, self.dtype)
        low = triple(min(r[0], r[-1]) for r in ranges)
        box = self.read(low, triple(max(r[0], r[-1]) + 1 - b for r, b in zip(ranges, low, strict=True)))
        steps = tuple(slice(None, None, r.step) for r in ranges)
        return box[steps].reshape(shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a volume has no array in memory that could be used without a copy")
        values = self.read((0, 0, 0), self.shape)
        return values if dtype is None else values.astype(dtype)

    def read(self, start_zyx: Triple, shape_zyx: Triple, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """
        Return the stored integers of a box (z, y, x).

        Parameters
        ----------
        start_zyx
            The first voxel; may lie outside the volume, which is padded with the stored value of air.
        shape_zyx
            Of the box.
        out
            Array to fill: of this shape and the volume's dtype, of any strides.

        Raises
        ------
        DamagedCacheError
            Naming volume, array and chunk.
        ValueError
            ``out`` does not fit.
        """
        return read_box(_handles.get(self).image, start_zyx, shape_zyx, out)

    def read_vessels(self, start_zyx: Triple, shape_zyx: Triple, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the vessel mask of a box, 0 outside; raise `CacheNotFoundError` if the volume has none. See `read`."""
        vessels = _handles.get(self).vessels
        if vessels is None:
            raise CacheNotFoundError(f"volume {self.uid} has no vessel mask")
        return read_box(vessels, start_zyx, shape_zyx, out)

    @property
    def has_bone(self) -> bool:
        """Whether it is known where bone is: of CT, as far as the spec keeps the HU that tell it."""
        return self.metadata.bone is not None

    def read_bone(self, start_zyx: Triple, shape_zyx: Triple) -> NDArray[np.bool_]:
        """
        Return which voxels of a box are bone, False outside; see `read`.

        They are so by cells of about 2 mm: `aneurysm.volume.bone` says what counts, and what of the vessels it takes.

        Raises
        ------
        CacheNotFoundError
            The volume has no label of bone.
        DamagedCacheError
            As `read`.
        """
        opened = _handles.get(self, bone=True)
        if opened.bone is None:
            raise CacheNotFoundError(f"volume {self.uid} has no label of bone; aneurysm info {self.uid} says why")
        return read_bone(opened, start_zyx, shape_zyx)

    def read_physical(self, start_zyx: Triple, shape_zyx: Triple) -> NDArray[np.float32]:
        """Return a box in HU, or the MR scanner's units: float32, padded with air. See `read`."""
        intensity = self.intensity
        values = self.read(start_zyx, shape_zyx).astype(np.float32)
        return to_physical(values, intensity.scale, intensity.offset)

    def read_normalised(self, start_zyx: Triple, shape_zyx: Triple) -> NDArray[np.float32]:
        """Return a box in model units: the spec's window mapped to [0, 1] and clipped, float32. See `read`."""
        low, high = self.intensity.window
        return to_model_units(self.read_physical(start_zyx, shape_zyx), low, high - low)


class VoxelArray(Protocol):
    """Stored integers (z, y, x) that are read by boxes, from wherever they are; ``fill`` is the value of air."""

    @property
    def shape(self) -> Triple:
        """Voxels along (z, y, x)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the integers."""

    @property
    def fill(self) -> int:
        """Stored value of air."""

    def read(self, start: Triple, out: NDArray[Any]) -> None:
        """Fill ``out`` with the box at ``start``, which lies within the array."""


def read_box(array: VoxelArray, start: Triple, shape: Triple, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return a box of ``array``, filled up with air where it reaches beyond; see `CachedVolume.read`."""
    if len(start) != 3 or len(shape) != 3 or min(shape) < 0:
        raise ValueError(f"a box has three starts and three lengths of at least 0, not {start}, {shape}")
    if out is None:
        out = np.empty(shape, array.dtype)
    elif out.shape != tuple(shape) or out.dtype != array.dtype:
        raise ValueError(f"out is {out.dtype} {out.shape}, the box {array.dtype} {tuple(shape)}")
    low = [min(max(s, 0), n) for s, n in zip(start, array.shape, strict=True)]
    high = [min(max(s + m, 0), n) for s, m, n in zip(start, shape, array.shape, strict=True)]
    if any(h <= b for h, b in zip(high, low, strict=True)):
        out.fill(array.fill)
        return out
    inner = tuple(slice(b - s, h - s) for b, h, s in zip(low, high, start, strict=True))
    if any(h - b != m for b, h, m in zip(low, high, shape, strict=True)):
        out.fill(array.fill)
    array.read((low[0], low[1], low[2]), out[inner])
    return out


def read_bone(opened: VolumeHandle, start: Triple, shape: Triple) -> NDArray[np.bool_]:
    """Return which voxels of a box of an open volume, which has a label of bone, are bone; see `CachedVolume.read`."""
    assert opened.bone is not None
    entry = opened.metadata.bone
    assert entry is not None
    first = triple(s // e for s, e in zip(start, entry.edge, strict=True))
    count = triple(-(-(s + n) // e) - f for s, n, e, f in zip(start, shape, entry.edge, first, strict=True))
    cells = read_box(opened.bone, first, count)
    offset = [s - f * e for s, f, e in zip(start, first, entry.edge, strict=True)]
    bone = expand_cells(cells != 0, entry.edge, offset, shape)
    # The cells at the far faces reach beyond the volume.
    for axis, (s, n) in enumerate(zip(start, opened.image.shape, strict=True)):
        bone[(slice(None),) * axis + (slice(max(0, n - s), None),)] = False
    return bone


class ZarrArray:
    """An array that the fast path can't read, read by zarr-python: other codecs, no shards, or several."""

    def __init__(self, array: Any, name: str) -> None:
        self._name, self._array = name, array
        z, y, x = self._array.shape
        self.shape: Triple = (z, y, x)
        self.chunks: Triple = triple(self._array.chunks)
        self.dtype, self.fill = self._array.dtype, int(self._array.fill_value)

    def read(self, start: Triple, out: NDArray[Any]) -> None:
        """Fill ``out`` with the box at ``start``; see `ShardReader.read`."""
        try:
            out[...] = self._array[tuple(slice(s, s + n) for s, n in zip(start, out.shape, strict=True))]
        except Exception as error:
            raise DamagedCacheError(f"{self._name} can't be read: {error}") from error


@dataclass
class VolumeHandle:
    """
    An open volume: its metadata, its voxels, its labels as far as it has them, its blocks and survey once asked for.

    ``bone`` is on the grid of its cells; `read_bone` reads it on that of the voxels. It is open if it was asked for:
    training reads none of it.
    """

    metadata: VolumeMetadata
    image: ShardReader | ZarrArray
    vessels: ShardReader | ZarrArray | None
    bone: ShardReader | ZarrArray | None = None
    blocks: Blocks | None = None
    survey: Survey | None = None


def open_volume(path: Path, *, bone: bool = False) -> VolumeHandle:
    """
    Open the volume in a folder, with ``bone`` also its label of bone, if it has one.

    Raises
    ------
    CacheNotFoundError
        There is none.
    DamagedCacheError
        Its metadata are missing or damaged.
    """
    name = path.name.removesuffix(".zarr")
    for _ in range(_TRIES):
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CacheNotFoundError(f"there is no volume {name} in the cache") from error
        except PermissionError as error:
            raise CacheError(f"volume {name} can't be read: {describe_denial(error)}") from error
        try:
            before = _version(folder)
            try:
                opened = _open_local(path, folder, name, bone)
            except DamagedCacheError:
                if _version(folder) == before and _is_at(path, folder):
                    raise
                continue
            if _version(folder) == before:
                return opened
        finally:
            os.close(folder)
    raise DamagedCacheError(f"volume {name} is replaced faster than it can be read")


def _is_at(path: Path, folder: int) -> bool:
    """Return True if an open folder is that at ``path``, and was not replaced since."""
    try:
        return os.path.samestat(os.fstat(folder), path.stat())
    except FileNotFoundError:
        return False


def _version(folder: int) -> tuple[int, ...] | None:
    """Return what differs if zarr.json is replaced."""
    try:
        found = os.stat("zarr.json", dir_fd=folder)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _open_local(path: Path, folder: int, name: str, bone: bool) -> VolumeHandle:
    try:
        metadata = parse_document(_read_file(folder, "zarr.json", name), f"volume {name}: zarr.json").own
    except DamagedCacheError as error:
        raise DamagedCacheError(f"{error}. Run aneurysm verify") from error
    image = _open_array(path, folder, IMAGE, name)
    vessels = None if metadata.mask_path is None else _open_array(path, folder, metadata.mask_path, name)
    label = None
    if bone and (entry := metadata.bone) is not None:
        label = _open_array(path, folder, entry.path, name)
        if label.shape != cells_shape(image.shape, entry.edge):
            raise DamagedCacheError(f"volume {name}: its label of bone has {label.shape} cells. Run aneurysm verify")
    return VolumeHandle(metadata, image, vessels, label)


def _open_array(path: Path, folder: int, array: str, name: str) -> ShardReader | ZarrArray:
    called = f"volume {name}, array {array}"
    layout = shard_layout(_read_json(folder, f"{array}/zarr.json", called))
    if layout is not None:
        return ShardReader(array, layout, called, folder)
    import zarr

    return ZarrArray(zarr.open_array(path / array, mode="r"), called)


def _read_file(folder: int, path: str, name: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(MOST_JSON)
    except OSError as error:
        raise DamagedCacheError(f"{name}: {path} is missing or damaged ({type(error).__name__})") from error


def _read_json(folder: int, path: str, name: str) -> dict[str, Any]:
    try:
        content = parse_json(_read_file(folder, path, name))
    except ValueError as error:
        raise DamagedCacheError(f"{name}: {path} is missing or damaged ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise DamagedCacheError(f"{name}: {path} is damaged")
    return content
