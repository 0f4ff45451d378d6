"""Deflated files (PS3.5, A.5): the data set behind the file meta information, inflated no further than is needed.

A megabyte can inflate to a gigabyte, so nothing here inflates without a limit.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.elements import read_file_meta

_READ: Final = 64 * 1024
_PIECE: Final = 2**20
"""Bytes that are inflated at once."""


def inflate_head(path: Path, limit: int) -> bytes:
    """
    Return the first ``limit`` bytes of the data set of ``path``, less if it is shorter or damaged.

    Raises
    ------
    struct.error
        The file meta information breaks off, or is longer than 64 kB.
    OSError
        The file can't be read.
    """
    content = BytesIO()  # unlike pieces that are joined, it holds everything once
    for piece in _pieces(path):
        content.write(piece[: limit - content.tell()])
        if content.tell() == limit:
            break
    return content.getvalue()


def inflate_into(path: Path, offset: int, target: NDArray[np.uint8]) -> int:
    """
    Fill ``target`` with what lies at ``offset`` of the data set of ``path``; return the number of bytes.

    They are fewer than ``target`` holds where the stream ends or is damaged before. Raises as `inflate_head`.
    """
    position = count = 0
    for piece in _pieces(path):
        found: NDArray[Any] = np.frombuffer(piece, np.uint8)[max(0, offset - position) :][: len(target) - count]
        target[count : count + len(found)] = found
        count += len(found)
        position += len(piece)
        if count == len(target):
            break
    return count


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the data set, a piece of at most `_PIECE` bytes after the other, up to its end or the first damage."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as file:
        _, start = read_file_meta(file.read(_READ))
        file.seek(start)
        while not inflater.eof and (data := inflater.unconsumed_tail or file.read(_READ)):
            try:
                piece = inflater.decompress(data, _PIECE)
            except zlib.error:
                return
            if piece:
                yield piece
