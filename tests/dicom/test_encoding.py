"""Files whose bytes are not what they declare: read as they are encoded, with a decision; or found to be damaged."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from aneurysm.dicom.header import DamagedHeaderError, read_header
from tests.support.acquisition import Acquisition, acquire
from tests.support.cached import CachedImage, cached, rejected, run
from tests.support.pattern import Pattern, anatomy
from tests.support.pixels import JPEG_EXTENDED, JPEG_LOSSLESS, Storage
from tests.support.series import new_uid, write_multiframe, write_series
from tests.support.truth import assert_shows

STACK = acquire(slices=24, shape=(25, 27))
PATTERN = anatomy(STACK.centre, STACK.extent_mm)
PLAIN = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
STREAMS = [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEG_LOSSLESS]


def data_set_start(content: bytes) -> int:
    """By the length of the group 0002, which pydicom writes first."""
    return 132 + 12 + struct.unpack_from("<I", content, 140)[0]


def declare(path: Path, syntax: str | None) -> None:
    """Change the declared transfer syntax, and nothing behind the file meta information."""
    content = path.read_bytes()
    meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
    if syntax is None:
        del meta.TransferSyntaxUID
    else:
        meta.TransferSyntaxUID = syntax
    start = BytesIO()
    write_file_meta_info(start, meta, enforce_standard=False)
    path.write_bytes(content[:132] + start.getvalue() + content[data_set_start(content) :])


def mismatches(image: CachedImage) -> list[str]:
    return [d["detail"] for d in image.meta["decisions"] if d["code"] == "encoding_as_found"]


def assert_read_as_found(tmp_path, actual, declared, *, noted: bool) -> None:
    """A series of one transfer syntax that declares another is cached by its own, and that is noted or not."""
    written = write_series(tmp_path / "s", STACK, PATTERN, syntax=actual)
    for path in written.paths:
        declare(path, declared)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, PATTERN)
    assert image.meta["source"]["transfer_syntaxes"] == [actual]
    assert bool(mismatches(image)) == noted


@pytest.mark.parametrize("declared", [*PLAIN, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, None], ids=str)
@pytest.mark.parametrize("actual", PLAIN, ids=lambda s: s.name)
def test_plain_pixels_are_read_whatever_is_declared(tmp_path, actual, declared):
    assert_read_as_found(tmp_path, actual, declared, noted=declared not in (actual, None))


@pytest.mark.parametrize("declared", [ExplicitVRLittleEndian, JPEGLSLossless, JPEG2000Lossless, JPEG_EXTENDED], ids=str)
@pytest.mark.parametrize("actual", STREAMS, ids=lambda s: s.name)
def test_the_codec_is_that_of_the_codestream(tmp_path, actual, declared):
    assert_read_as_found(tmp_path, actual, declared, noted=declared != actual)


@pytest.mark.parametrize("declared", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=str)
def test_a_deflated_data_set_is_inflated_whatever_is_declared(tmp_path, declared):
    written = write_series(tmp_path / "s", STACK, PATTERN, syntax=DeflatedExplicitVRLittleEndian)
    for path in written.paths:
        declare(path, declared)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, PATTERN)
    assert mismatches(image)[0].startswith(f"image {min(written.sops)}: it is deflated; declared is")


@pytest.mark.parametrize("declared", PLAIN, ids=lambda s: s.name)
@pytest.mark.parametrize("actual", PLAIN, ids=lambda s: s.name)
def test_functional_groups_are_read_as_they_are_encoded(tmp_path, actual, declared):
    pattern = anatomy(STACK.centre, STACK.extent_mm, 700.0)
    written = write_multiframe(tmp_path / "s", STACK, pattern, syntax=actual)
    declare(written.paths[0], declared)
    image = cached(tmp_path / "s")
    assert_shows(image, STACK, pattern)
    assert bool(mismatches(image)) == (declared != actual)


def test_files_that_are_what_they_declare_have_no_such_decision(tmp_path):
    for number, syntax in enumerate([*PLAIN, *STREAMS, DeflatedExplicitVRLittleEndian]):
        written = write_series(tmp_path / str(number), STACK.take([0]), PATTERN, syntax=syntax)
        header = read_header(written.paths[0])
        assert (header.transfer_syntax, header.mismatch) == (syntax, "")


def eight_bits_in_words(acquisition: Acquisition, pattern: Pattern, folder: Path, *, many: bool) -> None:
    """Big endian, OW: two pixels are a word whose bytes are swapped, the padding included (PS3.5, A.3 and 8.1.1)."""
    storage = Storage(8, 8, signed=False, slope=5.0, intercept=-300.0)

    def swap(dataset: Dataset, _index: int = 0) -> None:
        assert len(dataset.PixelData) % 2 == 0
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
        dataset["PixelData"].VR = "OW"

    options = {"storage": storage, "syntax": ExplicitVRBigEndian, "edit": swap}
    if many:
        write_multiframe(folder, acquisition, pattern, modality="CT", **options)
    else:
        write_series(folder, acquisition, pattern, **options)


@pytest.mark.parametrize("shape", [(25, 27), (26, 27)], ids=["odd", "even"])
@pytest.mark.parametrize("many", [False, True], ids=["file per slice", "multi-frame"])
def test_words_of_two_8_bit_pixels_are_swapped_also_across_frames(tmp_path, shape, many):
    stack = acquire(slices=9, shape=shape, gap_mm=2)
    pattern = anatomy(stack.centre, stack.extent_mm)
    eight_bits_in_words(stack, pattern, tmp_path / "s", many=many)
    assert_shows(cached(tmp_path / "s"), stack, pattern, step=5.0)


def cut(content: bytes, tag: bytes) -> bytes:
    return content[: content.index(tag) + 10]


def too_long(content: bytes, tag: bytes) -> bytes:
    at = content.index(tag) + 6
    return content[:at] + b"\xf0\xff" + content[at + 2 :]


@pytest.mark.parametrize("keyword, tag", [("PixelSpacing", 0x00280030), ("PatientName", 0x00100010)])
@pytest.mark.parametrize("damage", [cut, too_long])
def test_a_header_that_passes_the_end_of_the_file_is_damaged(
    tmp_path, damage: Callable[[bytes, bytes], bytes], keyword, tag
):
    """Whether the element is one that is read or one that is passed over."""
    written = write_series(tmp_path / "s", STACK.take([0]), PATTERN)
    path = written.paths[0]
    path.write_bytes(damage(path.read_bytes(), struct.pack("<HH", tag >> 16, tag & 0xFFFF)))
    with pytest.raises(DamagedHeaderError, match="breaks off") as caught:
        read_header(path)
    assert (
        caught.value.values["SOPInstanceUID"] == pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
    )
    assert keyword not in caught.value.values


def test_functional_groups_that_pass_the_end_of_the_file_are_damaged(tmp_path):
    path = write_multiframe(tmp_path / "s", STACK, PATTERN).paths[0]
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\x00\x52\x30\x92") + 400])
    with pytest.raises(DamagedHeaderError):
        read_header(path)


def test_a_damaged_header_is_a_missing_slice(tmp_path):
    written = write_series(tmp_path / "s", STACK, PATTERN)
    written.paths[11].write_bytes(cut(written.paths[11].read_bytes(), b"\x28\x00\x30\x00"))
    image = cached(tmp_path / "s")
    assert_shows(image, STACK.take([i for i in range(24) if i != 11]), PATTERN)
    assert "unreadable_files" in image.codes


@pytest.mark.parametrize("damage", ["header", "no pixels"])
def test_many_damaged_headers_are_no_volume(tmp_path, damage):
    """The upper quarter of the head: no gap would tell."""
    written = write_series(tmp_path / "s", STACK, PATTERN)
    for path in written.paths[18:]:
        content = path.read_bytes()
        at = content.index(b"\xe0\x7f\x10\x00")
        path.write_bytes(content[:at] if damage == "no pixels" else cut(content, b"\x28\x00\x30\x00"))
    assert rejected(tmp_path / "s") == "unreadable_pixels"


@pytest.mark.parametrize("longer", [0, 1000], ids=["cut", "and a length beyond the end"])
def test_pixel_data_that_passes_the_end_of_the_file_is_a_missing_slice(tmp_path, longer):
    written = write_series(tmp_path / "s", STACK, PATTERN)
    content = written.paths[11].read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW\0\0") + 8
    (length,) = struct.unpack_from("<I", content, at)
    written.paths[11].write_bytes(content[:at] + struct.pack("<I", length + longer) + content[at + 4 : -200])
    image = cached(tmp_path / "s")
    assert_shows(image, STACK.take([i for i in range(24) if i != 11]), PATTERN)
    assert "unreadable_slice" in image.codes


def test_series_without_a_patient_id_are_series_like_others(tmp_path):
    def nobody(dataset: Dataset, _index: int) -> None:
        dataset.PatientID = ""

    for name in ("one", "other"):
        write_series(tmp_path / "data" / name, STACK, PATTERN, uid=new_uid(name), edit=nobody)
    outcome = run(tmp_path / "data")
    assert outcome.cached == 2
    assert {row["patient_key"] for row in outcome.rows().values()} == {""}
