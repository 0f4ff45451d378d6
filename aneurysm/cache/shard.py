"""Array -> one Zarr v3 shard: chunks packed back to back, then an index of where each is.

zarr-python writes the same file, but spends several times as long on it as the compression takes. The metadata is still
zarr-python's; tests read the shards back with it and with tensorstore.

Each chunk is followed by its CRC-32C, the codec crc32c of Zarr: LZ4 decodes most damaged bytes without a complaint.

Layout (zarr-specs, sharding-indexed codec, index at the end): for each inner chunk in C order two little-endian uint64,
offset and length, both 2^64 - 1 for a chunk that holds only the fill value; then the CRC-32C of those bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from crc32c import crc32c
from numcodecs import blosc
from numpy.typing import NDArray

from aneurysm.cache.layout import ABSENT
from aneurysm.spec import Storage

_SHUFFLES: Final = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}


def write_shard(path: Path, volume: NDArray[Any], storage: Storage, fill: int) -> None:
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
