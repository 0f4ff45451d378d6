"""
One Zarr v3 shard on a local disk, written from an array, and read by boxes: the fast path of `CachedVolume.read`.

Chunks are packed back to back, each followed by its CRC-32C, the codec crc32c of Zarr: LZ4 decodes most damaged bytes
without a complaint. Then comes an index (zarr-specs, sharding-indexed codec, index at the end): for each chunk in C
order two little-endian uint64, offset and length, both 2^64 - 1 for a chunk that holds only the fill value; and the
CRC-32C of those bytes. zarr-python writes the same file, but spends several times as long on it as the compression
takes. The metadata is zarr-python's; tests read the shards with it and with tensorstore.

In reading, the index is read once, checked by its CRC-32C, and kept. Of a box only the touched chunks are read
(`pread`) into a buffer of the calling thread, checked by theirs, decoded into another, and copied into the box. Nothing
is allocated per chunk.

A map of the file would take a little less time where volumes are read again and again. But a disk that fails under it,
a volume that another machine removes from a file server, and a file cut short in place would end the process (SIGBUS);
here each is an error that names the chunk.

What is guaranteed: the same voxels as zarr-python reads. It holds no Python lock while it decodes, may be used by many
threads, and survives a fork.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from crc32c import crc32c
from numcodecs import blosc
from numpy.typing import NDArray

from aneurysm.cache.layout import ABSENT
from aneurysm.errors import DamagedCacheError
from aneurysm.spec import StorageSpec
from aneurysm.types import Triple

_ENTRY: Final = 16
_CRC: Final = 4


@dataclass(frozen=True)
class ShardLayout:
    """What zarr.json says of an array that is one shard."""

    shape: Triple
    chunk: Triple
    dtype: np.dtype[Any]
    fill: int

    @property
    def grid(self) -> Triple:
        """Chunks along (z, y, x)."""
        z, y, x = (-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))
        return z, y, x


def shard_layout(metadata: dict[str, Any]) -> ShardLayout | None:
    """Return the layout of an array that the fast path can read, None if zarr-python must."""
    try:
        shape, shard = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
        (sharding,) = metadata["codecs"]
        inner = sharding["configuration"]
        to_bytes, compressor, checksum = inner["codecs"]
        index = [codec["name"] for codec in inner["index_codecs"]]
        known = (
            metadata["zarr_format"] == 3
            and metadata["node_type"] == "array"
            and len(shape) == 3
            and all(n <= s for n, s in zip(shape, shard, strict=True))
            and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and not metadata.get("storage_transformers")
            and sharding["name"] == "sharding_indexed"
            and inner.get("index_location", "end") == "end"
            and index == ["bytes", "crc32c"]
            and inner["index_codecs"][0]["configuration"]["endian"] == "little"
            and to_bytes["name"] == "bytes"
            and to_bytes.get("configuration", {}).get("endian", "little") == "little"
            and compressor["name"] == "blosc"
            and checksum["name"] == "crc32c"
            and metadata["data_type"] in ("int16", "uint8", "uint16", "int8")
        )
        if not known:
            return None
        dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        chunk = inner["chunk_shape"]
        # Inner chunks count over the shard, which may be longer than the array: only then are they the array's own.
        if any(-(-n // c) * c != s for n, c, s in zip(shape, chunk, shard, strict=True)):
            return None
        return ShardLayout(tuple(shape), tuple(chunk), dtype, int(metadata["fill_value"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


class _Scratch(threading.local):
    """For each thread a decoded chunk of each kind, and the bytes of one that is not."""

    def __init__(self) -> None:
        self._decoded: dict[tuple[Triple, str], NDArray[Any]] = {}
        self._raw = memoryview(bytearray(1 << 16))

    def raw(self, length: int) -> memoryview:
        if length > len(self._raw):
            self._raw = memoryview(bytearray(length))
        return self._raw[:length]

    def get(self, chunk: Triple, dtype: np.dtype[Any]) -> NDArray[Any]:
        key = (chunk, dtype.str)
        if key not in self._decoded:
            self._decoded[key] = np.empty(chunk, dtype)
        return self._decoded[key]


_scratch = _Scratch()
# Of Blosc's 16-byte header: decoded bytes, block size, bytes with the header.
_sizes = struct.Struct("<4xI4xI").unpack_from


class ShardReader:
    """
    Reads boxes of one shard, whose file stays open as long as this object lives.

    Parameters
    ----------
    path
        The array's folder, with zarr.json and c/0/0/0.
    layout
        As `shard_layout` gives it.
    name
        What messages call the array.
    folder
        Descriptor of an open folder to which ``path`` is relative.

    Raises
    ------
    DamagedCacheError
        The shard is missing or too short, or its index fails its checksum.
    """

    def __init__(self, path: str, layout: ShardLayout, name: str, folder: int | None = None) -> None:
        self.layout, self.shape, self.chunks = layout, layout.shape, layout.chunk
        self.dtype, self.fill = layout.dtype, layout.fill
        self._name = name
        try:
            file = os.open(f"{path}/c/0/0/0", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError as error:
            raise DamagedCacheError(f"{name} has lost its shard {path}/c/0/0/0") from error
        except OSError as error:
            raise DamagedCacheError(f"{name}: its shard can't be read: {error.strerror}") from error
        self._file = file
        weakref.finalize(self, os.close, file)
        self._offsets, self._lengths = self._read_index()

    def _read_index(self) -> tuple[list[int], list[int]]:
        n, size = int(np.prod(self.layout.grid)), os.fstat(self._file).st_size
        length = n * _ENTRY + _CRC
        if size < length:
            raise DamagedCacheError(f"{self._name}: a shard of {size} bytes is too short for the index of {n} chunks")
        raw = memoryview(bytearray(length))
        try:
            self._fill(raw, size - length)
        except (OSError, RuntimeError) as error:
            raise DamagedCacheError(f"{self._name}: the shard's index can't be read: {error}") from error
        if crc32c(raw[:-_CRC]) != int.from_bytes(raw[-_CRC:], "little"):
            raise DamagedCacheError(f"{self._name}: the shard's index fails its checksum")
        offsets, lengths = np.frombuffer(raw[:-_CRC], "<u8").reshape(n, 2).T
        there = offsets != ABSENT
        # Each by itself, since sums of damaged numbers may run over.
        if np.any(((offsets > size) | (lengths > size) | (offsets + lengths > size - length)) & there):
            raise DamagedCacheError(f"{self._name}: the shard's index points beyond the file")
        # As Python's integers: taking one out of an array costs more than all else that is done for a chunk.
        return offsets.tolist(), lengths.tolist()

    def _fill(self, raw: memoryview, offset: int) -> None:
        """Read bytes of the shard."""
        done = os.preadv(self._file, [raw], offset)
        while done < len(raw):
            n = os.preadv(self._file, [raw[done:]], offset + done)
            if not n:
                raise RuntimeError("the shard was cut short")
            done += n

    def read(self, start: Triple, out: NDArray[Any]) -> None:
        """
        Fill ``out`` (z, y, x) with the box from ``start``, which must lie within the array.

        Raises
        ------
        DamagedCacheError
            A chunk can't be decoded; the message names it.
        """
        layout, scratch = self.layout, _scratch.get(self.layout.chunk, self.layout.dtype)
        decoded = scratch.reshape(-1).view(np.uint8)
        along_z, along_y, along_x = (_spans(s, n, c) for s, n, c in zip(start, out.shape, layout.chunk, strict=True))
        _, grid_y, grid_x = layout.grid
        for kz, in_z, out_z in along_z:
            for ky, in_y, out_y in along_y:
                # Views of a row of chunks are made once, not for each chunk.
                row, source = out[out_z, out_y], scratch[in_z, in_y]
                first = (kz * grid_y + ky) * grid_x
                for kx, in_x, out_x in along_x:
                    offset = self._offsets[first + kx]
                    if offset == ABSENT:
                        row[:, :, out_x] = layout.fill
                        continue
                    raw = _scratch.raw(self._lengths[first + kx])
                    try:
                        self._fill(raw, offset)
                        _decode(raw, decoded)
                    except (OSError, RuntimeError, ValueError) as error:
                        raise DamagedCacheError(
                            f"{self._name}: chunk ({kz}, {ky}, {kx}) is damaged: {error}"
                        ) from error
                    row[:, :, out_x] = source[:, :, in_x]


def _decode(data: memoryview, chunk: NDArray[np.uint8]) -> None:
    content = data[:-_CRC]
    if crc32c(content) != int.from_bytes(data[-_CRC:], "little"):
        raise RuntimeError("its checksum is wrong")
    # Blosc believes the header: a wrong size would leave voxels of the chunk before, or be read beyond the data.
    if len(content) < 16 or _sizes(content) != (len(chunk), len(content)):
        raise RuntimeError("its header gives other sizes")
    # numcodecs' function takes a tenth longer, on checks of what is known here; and its threads, one pool for the whole
    # process, would have to be off: a fork leaves them behind, and the child's first read would hang.
    imagecodecs.blosc_decode(content, numthreads=1, out=chunk)  # type: ignore[arg-type]


def _spans(start: int, length: int, chunk: int) -> list[tuple[int, slice, slice]]:
    """Return (chunk number, slice within the chunk, slice within the box) along one axis."""
    spans = []
    stop = start + length
    for k in range(start // chunk, -(-stop // chunk)):
        low, high = max(start, k * chunk), min(stop, (k + 1) * chunk)
        spans.append((k, slice(low - k * chunk, high - k * chunk), slice(low - start, high - start)))
    return spans


_SHUFFLES: Final = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}


def write_shard(path: Path, volume: NDArray[Any], storage: StorageSpec, fill: int) -> None:
    """
    Write ``volume`` (z, y, x) to ``path`` as one shard of chunks of ``storage.chunk``.

    Chunks at the far edges are filled up with ``fill``; chunks of nothing but ``fill`` are left out.
    """
    edges = storage.chunk
    counts = [-(-n // e) for n, e in zip(volume.shape, edges, strict=True)]
    index = np.full((int(np.prod(counts)), 2), ABSENT, "<u8")
    codec = storage.codec.encode()
    shuffle = _SHUFFLES[storage.shuffle]
    chunk = np.empty(edges, volume.dtype)
    position = 0
    with path.open("wb") as file:
        for i, at in enumerate(np.ndindex(*counts)):
            part = volume[tuple(slice(k * e, (k + 1) * e) for k, e in zip(at, edges, strict=True))]
            if part.shape != edges:
                chunk.fill(fill)
            chunk[tuple(slice(n) for n in part.shape)] = part
            if (chunk == fill).all():
                continue
            data = blosc.compress(chunk, codec, storage.level, shuffle)
            file.write(data)
            file.write(crc32c(data).to_bytes(4, "little"))
            index[i] = position, len(data) + 4
            position += len(data) + 4
        raw = index.tobytes()
        file.write(raw)
        file.write(crc32c(raw).to_bytes(4, "little"))
