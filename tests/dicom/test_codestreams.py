"""A compressed frame's own header must be that of the data set: decoders allocate by it, or abort the process over it.

The streams are headers made by hand, without pixels: no decoder sees them. One honest stream of each codec goes through
its decoder, so that the checks are known to let it through.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest

from aneurysm.dicom.codestream import check_stream, unpacked_size
from aneurysm.dicom.frame import PixelFormat
from aneurysm.dicom.pixels import PixelReader
from aneurysm.errors import PixelError
from tests.support.pixels import compressed_frame

ROWS, COLUMNS = 200, 256
JPEG_BASELINE, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JPEG_LS, J2K, HTJ2K, RLE = (
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.5",
)


def pixel_format(syntax: str, *, bits: int = 12, samples: int = 1) -> PixelFormat:
    return PixelFormat(
        ROWS, COLUMNS, samples, "MONOCHROME2", 16 if bits > 8 else 8, bits, bits - 1, False, syntax
    )  # fmt: skip


# JPEG 2000 ----------------------------------------


def siz(**changed: int) -> bytes:
    """The marker segment of the image's size (ISO 15444-1, A.5.1)."""
    fields = {
        "x1": COLUMNS, "y1": ROWS, "x0": 0, "y0": 0,
        "tile_x": COLUMNS, "tile_y": ROWS, "tile_x0": 0, "tile_y0": 0, "samples": 1, "depth": 11, "dx": 1, "dy": 1,
    }  # fmt: skip
    assert changed.keys() <= fields.keys()
    fields |= changed
    *grid, samples, depth, dx, dy = fields.values()
    body = struct.pack(">H8IH", 0, *grid, samples) + bytes([depth, dx, dy]) * samples
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(body) + 2) + body


def cod(*, layers: int = 1, levels: int = 5, block: tuple[int, int] = (4, 4), precincts: bytes = b"") -> bytes:
    """The marker segment of the coding style (A.6.1)."""
    body = struct.pack(">BBHB", bool(precincts), 0, layers, 0) + bytes([levels, *block, 0, 1]) + precincts
    return b"\xff\x52" + struct.pack(">H", len(body) + 2) + body


def coc(*, levels: int = 5, precincts: bytes = b"") -> bytes:
    """The marker segment of one component's coding style (A.6.2)."""
    body = bytes([0, bool(precincts), levels, 4, 4, 0, 1]) + precincts
    return b"\xff\x53" + struct.pack(">H", len(body) + 2) + body


def tile_part(*, number: int = 0, size: int | None = None, header: bytes = b"", content: bytes = bytes(20)) -> bytes:
    if size is None:
        size = 14 + len(header) + len(content)
    return struct.pack(">HHHIBB", 0xFF90, 10, number, size, 0, 1) + header + b"\xff\x93" + content


EOC = b"\xff\xd9"
JP2_BOXES = b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x0cjunkjunk\0\0\0\0jp2c"

HONEST = {
    "one tile": siz() + cod() + tile_part() + EOC,
    "unsigned 16 bits for 12": siz(depth=15) + cod() + tile_part() + EOC,
    "signed": siz(depth=0x80 | 15) + cod() + tile_part() + EOC,
    "last tile-part of unknown length": siz() + cod() + tile_part(size=0) + EOC,
    "no end, padded": siz() + cod() + tile_part() + b"\0",
    "tiles of 64 x 64": siz(tile_x=64, tile_y=64) + cod() + b"".join(tile_part(number=n) for n in range(16)) + EOC,
    "one tile, larger than the image": siz(tile_x=2**31, tile_y=2**31) + cod() + tile_part() + EOC,
    "moved on the grid": siz(x0=8, y0=8, x1=COLUMNS + 8, y1=ROWS + 8, tile_x=1024, tile_y=1024) + cod() + tile_part(),
    "50 layers, precincts of 32": siz() + cod(layers=50, precincts=b"\x55" * 6) + coc() + tile_part() + EOC,
    "a comment between": siz() + cod() + b"\xff\x64\x00\x06\x00\x01by" + tile_part() + EOC,
    "in a JP2 file": JP2_BOXES + siz() + cod() + tile_part() + EOC,
}


@pytest.mark.parametrize("stream", HONEST.values(), ids=HONEST)
def test_what_encoders_of_jpeg_2000_write_is_let_through(stream: bytes) -> None:
    assert check_stream(stream, pixel_format(J2K)) in (12, 16)


DISHONEST = {
    "60,000 x 60,000": (siz(x1=60000, y1=60000) + cod() + tile_part(), "60000"),
    "one row less": (siz(y1=ROWS - 1) + cod() + tile_part(), "the header"),
    "far out on the grid": (siz(x0=2**32 - 1 - COLUMNS, x1=2**32 - 1) + cod() + tile_part(), "grid"),
    "three components": (siz(samples=3) + cod() + tile_part(), "rows, columns, samples"),
    "16,384 components": (siz(samples=16384) + cod() + tile_part(), "damaged|samples"),
    "38 bits": (siz(depth=37) + cod() + tile_part(), "38 bits"),
    "one bit": (siz(depth=0) + cod() + tile_part(), "1 bits"),
    "subsampled": (siz(dx=2, dy=2) + cod() + tile_part(), "grid"),
    "not sampled at all": (siz(dx=0) + cod() + tile_part(), "grid"),
    "tiles of 1 x 1": (siz(tile_x=1, tile_y=1) + cod() + tile_part(), "51200 tiles"),
    "tiles of no size": (siz(tile_x=0) + cod() + tile_part(), "grid"),
    "tiles beside the image": (siz(tile_x0=5) + cod() + tile_part(), "grid"),
    "precincts of one pixel": (siz() + cod(precincts=b"\x00" * 6) + tile_part(), "precincts"),
    "precincts of one pixel in a component": (siz() + cod() + coc(precincts=b"\x00" * 6) + tile_part(), "precincts"),
    "precincts of one pixel in a tile": (siz() + cod() + tile_part(header=cod(precincts=b"\0" * 6)), "precincts"),
    "65,535 layers of many precincts": (siz() + cod(layers=65535, precincts=b"\x55" * 6) + tile_part(), "layers"),
    "no layer": (siz() + cod(layers=0) + tile_part(), "layers"),
    "33 levels": (siz() + cod(levels=33) + tile_part(), "33 levels"),
    "code blocks of 2^12": (siz() + cod(block=(8, 8)) + tile_part(), "code blocks"),
    "no coding style": (siz() + tile_part(), "no coding style"),
    "a tile-part beyond the end": (siz() + cod() + tile_part(size=10_000) + EOC, "tile-part 0"),
    "a tile-part that goes nowhere": (siz() + cod() + tile_part(size=1) + EOC, "tile-part 0"),
    "a tile that is none": (siz() + cod() + tile_part(number=1) + EOC, "tile-part 1"),
    "a header that goes nowhere": (siz() + b"\xff\x64\x00\x00" + cod() + tile_part(), "in its header"),
    "broken off in the size": (siz()[:30], "breaks off"),
    "broken off in the coding style": (siz() + cod()[:8], "breaks off"),
    "a JP2 file of empty boxes": (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\0junk", "codestream"),
    "something else": (b"hello, world", "no header"),
    "nothing": (b"", "no header"),
}


@pytest.mark.parametrize(("stream", "says"), DISHONEST.values(), ids=DISHONEST)
def test_jpeg_2000_that_is_not_what_the_data_set_says_is_refused(stream: bytes, says: str) -> None:
    with pytest.raises(PixelError, match=says):
        check_stream(stream, pixel_format(J2K))


# JPEG and JPEG-LS ----------------------------------------


def sof(kind: int, *, rows: int = ROWS, columns: int = COLUMNS, samples: int = 1, precision: int = 12) -> bytes:
    components = bytes([1, 0x11, 0]) * samples
    return struct.pack(">HHBHHB", kind, 8 + 3 * samples, precision, rows, columns, samples) + components


SOI, SOS = b"\xff\xd8", b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(30)
LSE = b"\xff\xf8\x00\x0d\x01\xff\xff" + bytes(8)


@pytest.mark.parametrize(
    ("syntax", "stream"),
    [
        pytest.param(JPEG_LOSSLESS, SOI + sof(0xFFC3) + SOS + EOC, id="lossless"),
        pytest.param(JPEG_BASELINE, SOI + b"\xff\xe0\x00\x04ab" + sof(0xFFC0, precision=8) + SOS, id="baseline"),
        pytest.param(JPEG_BASELINE, SOI + b"\xff\xff\xff" + sof(0xFFC1) + SOS, id="fill bytes before a marker"),
        pytest.param(JPEG_BASELINE, SOI + sof(0xFFC2, precision=8) + SOS * 10, id="progressive, 10 scans"),
        pytest.param(JPEG_LS, SOI + sof(0xFFF7) + LSE + SOS + EOC, id="JPEG-LS"),
    ],
)
def test_what_encoders_of_jpeg_write_is_let_through(syntax: str, stream: bytes) -> None:
    assert check_stream(stream, pixel_format(syntax)) in (8, 12)


@pytest.mark.parametrize("syntax, kind", [(JPEG_LOSSLESS, 0xFFC3), (JPEG_BASELINE, 0xFFC0), (JPEG_LS, 0xFFF7)])
@pytest.mark.parametrize(
    ("head", "says"),
    [
        pytest.param(lambda kind: sof(kind, rows=60000, columns=60000), "60000", id="60,000 x 60,000"),
        pytest.param(lambda kind: sof(kind, rows=0), "the header", id="rows given at the end"),
        pytest.param(lambda kind: sof(kind, samples=3), "samples", id="three components"),
        pytest.param(lambda kind: sof(kind, precision=20), "20 bits", id="20 bits"),
        pytest.param(lambda kind: sof(kind) + sof(kind, rows=60000), "one too many", id="two frame headers"),
        pytest.param(lambda kind: sof(0xFFC9), "another kind", id="arithmetic coding"),
        pytest.param(lambda _: b"", "no frame header", id="no frame header"),
        pytest.param(lambda kind: sof(kind)[:9], "breaks off|no frame header", id="a frame header that breaks off"),
        pytest.param(lambda kind: b"\xff\xe0\x00\x00" + sof(kind), "no frame header", id="a length of 0"),
    ],
)
def test_jpeg_that_is_not_what_the_data_set_says_is_refused(syntax, kind, head, says) -> None:
    stream = SOI + head(kind) + SOS + EOC
    with pytest.raises(PixelError, match=says):
        check_stream(stream if "off" not in says else SOI + head(kind), pixel_format(syntax))


def test_scans_without_end_are_refused() -> None:
    """10,000 scans over an image of any size for 400 kB."""
    stream = SOI + sof(0xFFC2, precision=8) + SOS * 10_000 + EOC
    with pytest.raises(PixelError, match="10000 scans"):
        check_stream(stream, pixel_format(JPEG_BASELINE))


def test_jpeg_ls_is_not_taken_for_jpeg() -> None:
    for syntax, kind in ((JPEG_LS, 0xFFC3), (JPEG_LOSSLESS, 0xFFF7)):
        with pytest.raises(PixelError, match="another kind"):
            check_stream(SOI + sof(kind) + SOS + EOC, pixel_format(syntax))


# RLE and others ----------------------------------------


def rle(*offsets: int, count: int | None = None, size: int = 1000) -> bytes:
    head = struct.pack("<16I", len(offsets) if count is None else count, *offsets, *[0] * (15 - len(offsets)))
    return head + bytes(size)


def test_rle_segments_in_their_order_are_let_through() -> None:
    assert check_stream(rle(64, 500), pixel_format(RLE)) == 16


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        pytest.param(rle(64), "1 RLE segments, 2", id="one segment for 16 bits"),
        pytest.param(rle(64, 100, count=2**32 - 1), "4294967295", id="4 billion segments"),
        pytest.param(rle(64, 2000), "RLE segments at", id="a segment beyond the end"),
        pytest.param(rle(500, 64), "RLE segments at", id="segments in the wrong order"),
        pytest.param(rle(0, 64), "RLE segments at", id="a segment in the header"),
        pytest.param(rle(64, 500)[:40], "breaks off", id="broken off"),
    ],
)
def test_rle_with_damaged_segments_is_refused(stream: bytes, says: str) -> None:
    with pytest.raises(PixelError, match=says):
        check_stream(stream, pixel_format(RLE))


@pytest.mark.parametrize(
    ("segment", "size"),
    [(b"", 0), (b"\x00a", 1), (b"\x02abc\x81x", 131), (b"\x80\x80\xffz", 2), (b"\x81", 0)],
)  # fmt: skip
def test_the_size_that_an_rle_segment_unpacks_to(segment: bytes, size: int) -> None:
    assert unpacked_size(segment, 1000) == size


def test_rle_that_unpacks_to_far_more_than_its_frame_is_an_error(tmp_path) -> None:
    """300 MB of zeros from 5 MB. pydicom's decoder, which comes after one that panics, would unpack all of it."""
    segment = b"\x81\x00" * 1_200_000
    stream = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + 2 * segment
    frame = compressed_frame(
        tmp_path / "slice.dcm", stream, replace(pixel_format(RLE, bits=16), rows=1100, columns=1100)
    )
    with pytest.raises(PixelError, match="longer than the frame"):
        PixelReader().read(frame)


@pytest.mark.parametrize("syntax", [HTJ2K, "1.2.840.10008.1.2.4.102", "1.2.3"])
def test_what_no_decoder_is_named_for_reaches_none(syntax: str) -> None:
    with pytest.raises(PixelError, match="no decoder"):
        check_stream(siz() + cod() + tile_part(), pixel_format(syntax))


@pytest.mark.parametrize(
    "encode, syntax",
    [
        pytest.param(lambda image: imagecodecs.jpeg2k_encode(image, reversible=True, level=0), J2K, id="JP2 file"),
        pytest.param(
            lambda image: imagecodecs.jpeg2k_encode(image, reversible=True, level=0, codecformat="j2k"), J2K, id="J2K"
        ),
        pytest.param(imagecodecs.jpegls_encode, JPEG_LS, id="JPEG-LS"),
        pytest.param(
            lambda image: imagecodecs.jpeg8_encode(image, lossless=True, bitspersample=12), JPEG_LOSSLESS, id="JPEG"
        ),
    ],
)
def test_a_stream_of_an_encoder_is_decoded(tmp_path, encode, syntax: str) -> None:
    y, x = np.mgrid[:ROWS, :COLUMNS]
    image = ((np.sin(y / 7) + np.cos(x / 9) + 2) * 1000).astype(np.uint16)
    found = PixelReader().read(compressed_frame(tmp_path / "slice.dcm", encode(image), pixel_format(syntax)))
    np.testing.assert_array_equal(found, image)
