"""The images by which a machine's decoders are looked at."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import imagecodecs
import numpy as np
import pytest

from aneurysm.dicom import decoder_check
from aneurysm.dicom.decoder_check import decoder_faults
from aneurysm.dicom.encoding import JPEG, JPEG_2000, JPEG_LS, RLE
from aneurysm.dicom.pixels import PixelReader


def test_all_that_is_read_is_decoded_here(tmp_path: Path) -> None:
    faults = decoder_faults(tmp_path)
    assert len(faults) == 8
    assert not any(faults.values()), faults
    looked_at = {syntax for syntax, *_ in decoder_check._STREAMS.values()}
    for kind in (JPEG, set(JPEG_LS), set(JPEG_2000), {RLE}):
        assert looked_at & kind


def test_a_decoder_that_is_missing_or_wrong_is_told(tmp_path: Path) -> None:
    with mock.patch.object(imagecodecs, "jpeg8_decode", side_effect=lambda _: np.zeros((16, 16), np.uint16)):
        faults = decoder_faults(tmp_path)
    assert {name for name, fault in faults.items() if fault == "its pixels come out wrong"} == {
        "JPEG baseline", "JPEG extended", "JPEG lossless",
    }  # fmt: skip
    with mock.patch.object(PixelReader, "read", side_effect=ImportError("libopenjp2.so.7: cannot open")):
        faults = decoder_faults(tmp_path)
    assert faults["JPEG 2000"] == "ImportError: libopenjp2.so.7: cannot open"


@pytest.mark.parametrize("name", ["JPEG-LS", "RLE"])
def test_a_stream_that_is_not_decoded_is_a_fault(tmp_path: Path, name: str) -> None:
    syntax, bits, stream = decoder_check._STREAMS[name]
    with mock.patch.dict(decoder_check._STREAMS, {name: (syntax, bits, stream[:40])}):
        fault = decoder_faults(tmp_path)[name]
    assert fault
    assert str(tmp_path) not in fault
