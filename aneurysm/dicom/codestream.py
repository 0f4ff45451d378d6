"""The header of a compressed frame, held against DICOM's before a decoder sees it.

Decoders allocate what a stream says of itself, or abort the process over it. So the size, the samples and their depth
must be those of the data set, and whatever multiplies the work (tiles, layers, precincts, scans) must be within what
honest encoders write.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from aneurysm.dicom.encoding import JPEG, JPEG_2000, JPEG_LS, RLE, jpeg_segments
from aneurysm.dicom.frame import PixelFormat
from aneurysm.errors import PixelError

# Frame headers: baseline, extended and progressive DCT, lossless; JPEG-LS.
_JPEG_FRAMES: Final = frozenset({0xFFC0, 0xFFC1, 0xFFC2, 0xFFC3})
_JPEG_LS_FRAMES: Final = frozenset({0xFFF7})
_SOF: Final = frozenset({*range(0xFFC0, 0xFFD0), 0xFFF7}) - {0xFFC4, 0xFFC8, 0xFFCC}
_PROGRESSIVE, _SOS, _EOI = 0xFFC2, 0xFFDA, 0xFFD9
_MOST_SCANS: Final = 64
"""A progressive stream has about 10; each scan may cost a pass over the whole image, for ten bytes."""

_SOC_SIZ: Final = b"\xff\x4f\xff\x51"
_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_JP2: Final = b"\x00\x00\x00\x0cjP  "
_LARGEST: Final = 0xFFFF
"""Of the reference grid of JPEG 2000: an offset that is larger than any image is damage."""
_MOST_PACKETS: Final = 4_000_000
"""Layers times precincts: decoders keep two bytes for each."""


@dataclass(frozen=True, slots=True)
class _Tiling:
    """How JPEG 2000 divides an image: the number of tiles, their columns and rows, samples, pixels of the whole."""

    tiles: int
    tile: tuple[int, int]
    samples: int
    pixels: int


def check_stream(encoded: bytes, fmt: PixelFormat) -> int:
    """
    Return the bits a sample of one compressed frame, by its own header.

    Raises
    ------
    PixelError
        The stream is not of the size, number of samples or depth that the data set has; it breaks off; it is of no kind
        that is read; or it asks for work out of all proportion to its size.
    """
    try:
        if fmt.transfer_syntax == RLE:
            return _check_rle(encoded, fmt)
        if fmt.transfer_syntax in JPEG_2000:
            return _check_jpeg_2000(encoded, fmt)
        if fmt.transfer_syntax in (*JPEG, *JPEG_LS):
            return _check_jpeg(encoded, fmt)
    except (struct.error, IndexError) as error:
        raise PixelError("the stream breaks off in its header") from error
    raise PixelError("no decoder for this transfer syntax")


def unpacked_size(segment: bytes, limit: int) -> int:
    """Return how many bytes an RLE segment (PackBits) unpacks to; more than ``limit`` are not counted to the end."""
    at = size = 0
    while at + 1 < len(segment) and size <= limit:
        control = segment[at]
        if control < 128:
            size += control + 1
            at += control + 2
        else:
            size += 257 - control if control > 128 else 0
            at += 2 if control > 128 else 1
    return size


def rle_segments(encoded: bytes) -> list[bytes]:
    """Return the segments of an RLE frame (PS3.5, G.5) whose header was checked."""
    count = struct.unpack_from("<I", encoded)[0]
    bounds = [*struct.unpack_from(f"<{count}I", encoded, 4), len(encoded)]
    return [encoded[a:b] for a, b in pairwise(bounds)]


def _check_rle(encoded: bytes, fmt: PixelFormat) -> int:
    count, *offsets = struct.unpack_from("<16I", encoded)
    wanted = fmt.samples * fmt.bits_allocated // 8
    if count != wanted:
        raise PixelError(f"{count} RLE segments, {wanted} are needed")
    bounds = [64, *offsets[:count], len(encoded)]
    if any(a > b for a, b in pairwise(bounds)):
        raise PixelError(f"RLE segments at {offsets[:count]} of {len(encoded)} bytes")
    return fmt.bits_allocated


def _check_jpeg(encoded: bytes, fmt: PixelFormat) -> int:
    """Walk the markers of JPEG or JPEG-LS up to the first scan."""
    kinds = _JPEG_LS_FRAMES if fmt.transfer_syntax in JPEG_LS else _JPEG_FRAMES
    frame = precision = marker = at = 0
    for marker, at in jpeg_segments(encoded):
        if marker in _SOF:
            if frame or marker not in kinds:
                raise PixelError(f"frame header {marker:X} is one too many, or of another kind of JPEG")
            frame = marker
            precision, rows, columns, samples = struct.unpack_from(">BHHB", encoded, at)
            _compare((rows, columns, samples), precision, fmt)
        elif marker in (_SOS, _EOI):
            break
    if not frame or marker != _SOS:
        raise PixelError("the JPEG stream has no frame header")
    # Of one sample only a progressive stream has several: decoders refuse a second one of any other.
    several = frame == _PROGRESSIVE or fmt.samples > 1
    if several and (scans := encoded.count(b"\xff\xda", at - 4)) > _MOST_SCANS:
        raise PixelError(f"{scans} scans, up to {_MOST_SCANS} are read")
    return precision


def _compare(found: tuple[int, int, int], precision: int, fmt: PixelFormat) -> None:
    wanted = (fmt.rows, fmt.columns, fmt.samples)
    if found != wanted or not 2 <= precision <= fmt.bits_allocated:
        raise PixelError(f"the stream has {found} rows, columns, samples of {precision} bits, the header {wanted}")


def _check_jpeg_2000(encoded: bytes, fmt: PixelFormat) -> int:
    """Walk the main header of JPEG 2000 (ISO 15444-1, annex A) and those of its tile-parts."""
    at = _codestream(encoded)
    if encoded[at : at + 4] != _SOC_SIZ:
        raise PixelError("the JPEG 2000 stream has no header")
    length, _, *grid, samples = struct.unpack_from(">HH8IH", encoded, at + 4)
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0 = grid
    depth = encoded[at + 42 : at + 42 + 3 * samples]
    if length != 38 + 3 * samples or len(depth) != 3 * samples:
        raise PixelError("the size of the JPEG 2000 stream is damaged")
    precision = max(depth[0::3], default=0) % 128 + 1
    _compare((y1 - y0, x1 - x0, samples), precision, fmt)
    subsampled = any(n != 1 for n in depth[1::3] + depth[2::3])
    whole = tile_x0 <= x0 < tile_x0 + tile_x and tile_y0 <= y0 < tile_y0 + tile_y
    if max(x1, y1) > _LARGEST or not whole or min(tile_x, tile_y) == 0 or subsampled:
        raise PixelError(f"a JPEG 2000 grid of {grid} with samples {list(depth[1:])}")
    tiles = -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y)
    image = _Tiling(tiles, (min(tile_x, x1), min(tile_y, y1)), samples, fmt.rows * fmt.columns)
    if tiles > max(16, image.pixels // 1024):
        raise PixelError(f"{tiles} tiles in JPEG 2000 of {image.pixels} pixels")
    at, coded = _marker_segments(encoded, at + 4 + length, _SOT, image)
    if not coded:
        raise PixelError("the JPEG 2000 stream has no coding style")
    while encoded[at : at + 2] == b"\xff\x90":
        _, _, number, size = struct.unpack_from(">HHHI", encoded, at)
        if number >= tiles or (size and not 14 <= size <= len(encoded) - at):
            raise PixelError(f"tile-part {number} of {size} bytes, of {tiles} tiles in {len(encoded) - at} bytes")
        _marker_segments(encoded, at + 12, _SOD, image)
        if size == 0:  # it reaches to the end
            break
        at += size
    return precision


def _codestream(encoded: bytes) -> int:
    """Return where the codestream begins: at once, or within the boxes of a JP2 file, which some writers put there."""
    at = 0
    if encoded[:8] != _JP2:
        return at
    while True:
        size, kind = struct.unpack_from(">I4s", encoded, at)
        if kind == b"jp2c":
            return at + 8
        if size < 8:
            raise PixelError("a JP2 file without a codestream")
        at += size


def _marker_segments(encoded: bytes, at: int, end: int, image: _Tiling) -> tuple[int, bool]:
    """Walk to the marker ``end``, checking coding styles; return where it is, and if there was one."""
    coded = False
    while True:
        marker, length = struct.unpack_from(">HH", encoded, at)
        if marker == end:
            return at, coded
        if marker >> 8 != 0xFF or marker in (_SOT, _SOD, _EOC) or length < 2:
            raise PixelError(f"the JPEG 2000 stream has {marker:X} in its header")
        content = encoded[at + 4 : at + 2 + length]
        if marker == _COD:
            coded = True
            _check_style(content[0] & 1, content[5:], struct.unpack_from(">H", content, 2)[0], image)
        elif marker == _COC:
            skipped = 1 if image.samples < 257 else 2
            _check_style(content[skipped] & 1, content[skipped + 1 :], 1, image)
        at += 2 + length


def _check_style(own_precincts: int, style: bytes, layers: int, image: _Tiling) -> None:
    """Check decomposition levels, code blocks and precincts: all that is allocated for each of them."""
    levels, width, height = struct.unpack_from("3B", style)
    if levels > 32 or width > 8 or height > 8 or width + height > 8:
        raise PixelError(f"JPEG 2000 with {levels} levels, code blocks of 2^{width + 2} x 2^{height + 2}")
    exponents = struct.unpack_from(f"{levels + 1}B", style, 5) if own_precincts else (0xFF,) * (levels + 1)
    precincts = 0
    for level, exponent in enumerate(exponents):
        columns, rows = (-(-n // 2 ** (levels - level)) for n in image.tile)
        precincts += (-(-columns // 2 ** (exponent & 15)) + 1) * (-(-rows // 2 ** (exponent >> 4)) + 1)
    precincts *= image.tiles * image.samples
    most = max(4 * (levels + 1) * image.tiles * image.samples, image.pixels // 64)
    if precincts > most or not 0 < layers * precincts <= _MOST_PACKETS:
        raise PixelError(f"{precincts} precincts, {layers} layers in JPEG 2000 of {image.pixels} pixels")
