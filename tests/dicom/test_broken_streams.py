"""A compressed slice that breaks off is an error, never a picture that is half grey."""

from __future__ import annotations

from dataclasses import replace

import imagecodecs
import numpy as np
import pytest

from aneurysm.dicom.frame import Frame, PixelFormat
from aneurysm.dicom.pixels import PixelReader
from aneurysm.errors import PixelError
from tests.support.pixels import compressed_frame

ROWS, COLUMNS = 40, 56


def make_frame(tmp_path, encoded: bytes, syntax: str, bits: int) -> Frame:
    fmt = PixelFormat(ROWS, COLUMNS, 1, "MONOCHROME2", 16 if bits > 8 else 8, bits, bits - 1, False, syntax)
    return compressed_frame(tmp_path / "slice.dcm", encoded, fmt)


CASES = {
    "JPEG lossless": ("1.2.840.10008.1.2.4.70", 12, {"lossless": True, "bitspersample": 12}),
    "JPEG baseline": ("1.2.840.10008.1.2.4.50", 8, {"level": 95}),
    "JPEG extended": ("1.2.840.10008.1.2.4.51", 12, {"level": 95, "bitspersample": 12}),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    syntax, bits, options = CASES[request.param]
    y, x = np.mgrid[:ROWS, :COLUMNS]
    image = ((np.sin(y / 7) + np.cos(x / 9) + 2) / 4.1 * 2**bits).astype(np.uint16 if bits > 8 else np.uint8)
    return image, imagecodecs.jpeg8_encode(image, **options), syntax, bits


def test_a_whole_stream_is_read(tmp_path, case):
    image, encoded, syntax, bits = case
    found = PixelReader().read(make_frame(tmp_path, encoded, syntax, bits))
    lossy = 0 if syntax.endswith("70") else 2 ** (bits - 5)
    assert np.abs(found.astype(int) - image).max() <= lossy


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_stream_that_breaks_off_is_an_error(tmp_path, case, share):
    _, encoded, syntax, bits = case
    with pytest.raises(PixelError, match="the file"):
        PixelReader().read(make_frame(tmp_path, encoded[: int(len(encoded) * share)], syntax, bits))


def test_a_second_scan_is_an_error(tmp_path, case):
    """Decoders refuse it, which is why scans are counted in progressive streams alone."""
    _, encoded, syntax, bits = case
    scan = encoded[encoded.index(b"\xff\xda") : -2]
    with pytest.raises(PixelError):
        PixelReader().read(make_frame(tmp_path, encoded[:-2] + scan + encoded[-2:], syntax, bits))


def test_a_stream_of_another_size_is_an_error(tmp_path, case):
    _, encoded, syntax, bits = case
    frame = make_frame(tmp_path, encoded, syntax, bits)
    with pytest.raises(PixelError, match="the stream has"):
        PixelReader().read(replace(frame, format=replace(frame.format, rows=ROWS * 2)))
