"""Who reads patches: each contender is a class that writes its files once, and then reads boxes of voxels from them.

Each is used the way its documentation uses it: what a training script keeps open is kept open. Libraries are
imported in `open` and `prepare`, since each contender has a process of its own (`benchmarks.patch_worker`): settings
of one, zarr's codec pipeline above all, never reach another.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.patch_data import size_mb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aneurysm.cache.volume import CachedVolume
    from aneurysm.types import Triple
    from benchmarks.patch_data import Box


class Contender:
    """
    One way of reading patches. The base class reads our cache; subclasses with files of their own override `_write`.

    Parameters
    ----------
    volumes
        Of our cache: where the voxels come from.
    folder
        For the contender's own files.
    """

    title: ClassVar[str]
    rare: ClassVar[bool] = False  # so slow that every fifth round will do

    def __init__(self, volumes: list[CachedVolume], folder: Path) -> None:
        self.volumes, self.folder = volumes, folder
        self.at: Box | None = None  # where the last patch lay, of those that choose the place themselves

    def prepare(self) -> float:
        """Write the contender's own files, if it has any; return the size of what it reads, in 10^6 bytes."""
        for i, volume in enumerate(self.volumes):
            self._write(i, volume.read((0, 0, 0), volume.shape))
        return size_mb(self.files())

    def _write(self, index: int, voxels: NDArray[Any]) -> None:
        pass

    def files(self) -> list[Path]:
        """Return the files that hold the voxels."""
        return [path for volume in self.volumes for path in (volume.path / "0").rglob("*") if path.is_file()]

    def open(self) -> None:
        """Import the library and open what its users keep open."""

    def round_of(self, patch: Triple, count: int) -> int:
        """Return how many patches a round has: as many as the others', unless fewer would not be whole."""
        del patch
        return count

    def read(self, index: int, start: Triple, shape: Triple) -> Any:
        """Return a patch of volume ``index``. This is what is timed."""
        raise NotImplementedError

    def unmap(self) -> None:
        """Let go of mapped pages, which the kernel would not forget."""

    def integers(self, patch: Any, index: int) -> NDArray[np.int16]:
        """Return a patch as our cache stores it: (z, y, x), int16. Not timed."""
        del index
        array = np.asarray(patch)
        stored = np.ascontiguousarray(array.reshape(array.shape[-3:]).astype(np.int16))
        if not np.array_equal(stored, array.reshape(stored.shape)):
            raise ValueError("there are values that are no integers")
        return stored


class Ours(Contender):
    """`CachedVolume.read`."""

    title = "**aneurysm** (one Zarr shard a volume)"

    def read(self, index: int, start: Triple, shape: Triple) -> Any:
        """Read the box."""
        return self.volumes[index].read(start, shape)


class ZarrPython(Contender):
    """The same files, opened once with zarr-python and sliced."""

    title = "zarr-python, default pipeline, same files"
    pipeline = "BatchedCodecPipeline"

    def open(self) -> None:
        """Open all arrays, and make sure of the pipeline that reads them."""
        import zarr

        self._configure(zarr.config)
        self.arrays = [zarr.open_array(volume.path / "0", mode="r") for volume in self.volumes]
        found = type(self.arrays[0].async_array.codec_pipeline).__name__
        if found != self.pipeline:
            raise RuntimeError(f"zarr took {found}, not {self.pipeline}")

    def _configure(self, config: Any) -> None:
        config.set({"threading.max_workers": 1})

    def read(self, index: int, start: Triple, shape: Triple) -> Any:
        """Slice the open array."""
        return self.arrays[index][slices(start, shape)]


class Zarrs(ZarrPython):
    """zarr-python with the codec pipeline of zarrs, in Rust."""

    title = "zarrs pipeline of zarr-python, same files"
    pipeline = "ZarrsCodecPipeline"

    def _configure(self, config: Any) -> None:
        # "strict": what zarrs can't read is an error, not silently left to zarr-python.
        own = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
        config.set(own | {"threading.max_workers": 1})


class TensorStore(Contender):
    """The same files, opened once with tensorstore; no cache of decoded chunks, which we have not either."""

    title = "tensorstore, same files"

    def open(self) -> None:
        """Open all arrays for one thread of decoding and one of reading."""
        import tensorstore

        limits = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}
        context = tensorstore.Context(limits | {"cache_pool": {"total_bytes_limit": 0}})
        stores = [{"driver": "file", "path": str(volume.path / "0")} for volume in self.volumes]
        self.arrays = [
            tensorstore.open({"driver": "zarr3", "kvstore": store}, context=context, read=True).result()
            for store in stores
        ]

    def read(self, index: int, start: Triple, shape: Triple) -> Any:
        """Slice and wait."""
        return self.arrays[index][slices(start, shape)].read().result()


class OwnFiles(Contender):
    """A contender that reads what it wrote to its folder."""

    def files(self) -> list[Path]:
        """Return all files of its folder."""
        return [path for path in self.folder.iterdir() if path.is_file()]


class MemoryMap(OwnFiles):
    """numpy's memory-mapped file, opened once."""

    title = "memory-mapped .npy, uncompressed"

    def _write(self, index: int, voxels: NDArray[Any]) -> None:
        np.save(self.folder / f"{index}.npy", voxels)

    def open(self) -> None:
        """Map all files."""
        self.arrays = [np.load(self.folder / f"{i}.npy", mmap_mode="r") for i in range(len(self.volumes))]

    def read(self, index: int, start: Triple, shape: Triple) -> Any:
        """Copy the box out."""
        return np.array(self.arrays[index][slices(start, shape)])

    def unmap(self) -> None:
        """Take the pages out of this process; they come back at the next touch."""
        for array in self.arrays:
            if isinstance(array.base, mmap.mmap):
                array.base.madvise(mmap.MADV_DONTNEED)


def slices(start: Triple, shape: Triple) -> tuple[slice, ...]:
    """Return a box as an index of an array."""
    return tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
