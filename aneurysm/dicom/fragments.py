"""Encapsulated pixel data (PS3.5, A.4): where in the file the compressed bytes of each frame are."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from aneurysm.errors import PixelError

_MOST: Final = 200_000
"""Fragments of one file, of 64 kB or more as they are usually: 13 GB."""
_BUFFER: Final = 256 * 1024

Fragment = tuple[int, int]
"""Where one begins in the file, and its length in bytes."""


@dataclass(frozen=True, slots=True)
class Fragments:
    """The fragments of one file's pixel data; ``offsets`` is the basic offset table, empty if there is none."""

    fragments: list[Fragment]
    offsets: Sequence[int]

    def of_frames(self, frames: int, file: BinaryIO) -> list[list[Fragment]]:
        """
        Return the fragments of each frame, by the offset table, else by their number, else by the marks of their ends.

        ``file`` is the one that they are of. Of one with a single frame all fragments are that frame's, whatever the
        table has.

        Raises
        ------
        PixelError
            They are fewer than ``frames``.
        OSError
            The file can't be read.
        """
        if frames == 1:
            return [self.fragments]
        if self.offsets:
            return self._by_offsets()
        if len(self.fragments) == frames:
            return [[fragment] for fragment in self.fragments]
        if len(self.fragments) < frames:
            raise PixelError(f"{len(self.fragments)} fragments, {frames} frames")
        return self._by_ends(file)

    def _by_offsets(self) -> list[list[Fragment]]:
        found: list[list[Fragment]] = [[] for _ in self.offsets]
        start = self.fragments[0][0] if self.fragments else 0
        frame = 0
        for fragment in self.fragments:
            if frame + 1 < len(self.offsets) and fragment[0] - start >= self.offsets[frame + 1]:
                frame += 1
            found[frame].append(fragment)
        return found

    def _by_ends(self, file: BinaryIO) -> list[list[Fragment]]:
        """Begin a frame behind each fragment that ends as the streams of JPEG and its successors do: FF D9, padded."""
        found: list[list[Fragment]] = [[]]
        for start, length in self.fragments:
            found[-1].append((start, length))
            file.seek(start + max(0, length - 10))
            if b"\xff\xd9" in file.read(min(length, 10)):
                found.append([])
        return found if found[-1] else found[:-1]


def open_buffered(path: Path) -> BinaryIO:
    """Open a file of fragments so that those of one compressed slice are usually read at once."""
    return path.open("rb", buffering=_BUFFER)


def read_fragments(file: BinaryIO, offset: int) -> Fragments:
    """
    Find the fragments of the pixel data whose value starts at ``offset`` of ``file``; one that breaks off is the last.

    Raises
    ------
    PixelError
        There is something other than fragments, or no end of them.
    OSError
        The file can't be read.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(offset)
    found = _next_item(file, size)
    if found is None:
        raise PixelError("the pixel data has no offset table")
    table = file.read(min(found[1], 4 * _MOST))
    fragments: list[Fragment] = []
    file.seek(sum(found))
    while (found := _next_item(file, size)) is not None:
        if len(fragments) == _MOST:
            raise PixelError(f"more than {_MOST} fragments")
        fragments.append(found)
        file.seek(sum(found))
    return Fragments(fragments, struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4]))


def read_frame(file: BinaryIO, fragments: Sequence[Fragment], limit: int) -> bytes:
    """
    Return the compressed bytes of one frame of ``file``.

    Raises
    ------
    PixelError
        They are more than ``limit``.
    OSError
        The file can't be read.
    """
    size = sum(length for _, length in fragments)
    if size > limit:
        raise PixelError(f"{size} bytes, more than the frame takes without compression")
    content = []
    for start, length in fragments:
        file.seek(start)
        content.append(file.read(length))
    return content[0] if len(content) == 1 else b"".join(content)


def _next_item(file: BinaryIO, size: int) -> Fragment | None:
    """Return where the value of the next item is, within a file of ``size`` bytes; None at the end."""
    head = file.read(8)
    if len(head) < 8:
        return None
    group, element, length = struct.unpack("<HHI", head)
    start = file.tell()
    match group << 16 | element:
        case 0xFFFEE000 if length != 0xFFFFFFFF:
            return start, min(length, max(0, size - start))
        case 0xFFFEE0DD:
            return None
    raise PixelError(f"neither a fragment nor the end of them at byte {start - 8}")
