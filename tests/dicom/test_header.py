"""The walker against pydicom: the same values from the same bytes, for every real file that there is.

Compared are the listed elements and where the pixel data lies; not what neither reads.
"""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from aneurysm.dicom.header import Header, NotDicomError, _read_with_pydicom, read_header

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real"
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


def data_set(syntax) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    ds = FileDataset(
        "",
        {},
        file_meta=meta,
        preamble=b"\0" * 128,
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
    )
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = CTImageStorage, "1.2.3", "1.2.4"
    ds.Modality, ds.PatientID, ds.ImageType = "CT", "someone", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-1.5, 2.25, 1e-3], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [0.5, 0.25], "0.625", 7
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, 5, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.add_new(0x00280120, "SS", -2000)
    ds.RescaleIntercept, ds.RescaleSlope, ds.DiffusionBValue = "-1024", "1", 1000.0
    inner = Dataset()
    inner.ImagePositionPatient = [9, 9, 9]  # must not be taken for the top level's
    inner.ReferencedSOPInstanceUID = "9.9"
    ds.ReferencedImageSequence = Sequence([inner])
    ds.ReferencedImageSequence.is_undefined_length = True
    inner.is_undefined_length_sequence_item = True
    ds.PixelData = np.arange(15, dtype="<i2" if syntax.is_little_endian else ">i2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def save(ds: FileDataset, path: Path) -> Path:
    syntax = ds.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(
        path, ds, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, enforce_file_format=True
    )
    return path


def read_with_pydicom(path: Path) -> Header:
    with path.open("rb") as file:
        return _read_with_pydicom(path, path.stat().st_size, file)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_every_listed_kind_of_value_in_every_plain_syntax(tmp_path, syntax):
    header = read_header(save(data_set(syntax), tmp_path / "a.dcm"))
    assert header.get("ImagePositionPatient") == [-1.5, 2.25, 1e-3]
    assert header.get("PixelSpacing") == [0.5, 0.25]
    assert header.get("ImageType") == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert header.get("PixelPaddingValue") == -2000
    assert header.get("InstanceNumber") == 7
    assert (header.get("Rows"), header.get("Columns"), header.get("PixelRepresentation")) == (3, 5, 1)
    assert header.get("RescaleIntercept") == -1024.0
    assert header.get("PatientID") == "someone"
    assert header.get("DiffusionBValue") == 1000.0
    assert header.pixel_length == 30
    if syntax != DeflatedExplicitVRLittleEndian:
        dtype = "<i2" if syntax.is_little_endian else ">i2"
        assert np.fromfile(tmp_path / "a.dcm", dtype, 15, offset=header.pixel_offset).tolist() == list(range(15))


@pytest.mark.parametrize("syntax", SYNTAXES[:3], ids=lambda s: s.name)
def test_the_walker_and_pydicom_agree(tmp_path, syntax):
    path = save(data_set(syntax), tmp_path / "a.dcm")
    walked, parsed = read_header(path), read_with_pydicom(path)
    assert walked.values == parsed.values
    assert (walked.pixel_offset, walked.pixel_length) == (parsed.pixel_offset, parsed.pixel_length)


def test_the_walker_and_pydicom_agree_on_real_files():
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL}")
    compared = 0
    for path in sorted(p for p in REAL.rglob("*") if p.suffix == ".dcm" or p.parent.name == "dicom"):
        walked = read_header(path)
        if walked.dataset is not None:
            continue  # functional groups: pydicom read it in the first place
        parsed = read_with_pydicom(path)
        assert walked.values == parsed.values, path
        assert (walked.pixel_offset, walked.pixel_length) == (parsed.pixel_offset, parsed.pixel_length), path
        compared += 1
    assert compared > 150


def test_a_file_without_preamble_is_read(tmp_path):
    path = save(data_set(ImplicitVRLittleEndian), tmp_path / "a.dcm")
    whole = path.read_bytes()
    bare = tmp_path / "bare"
    ds = pydicom.dcmread(path)
    first = whole.index(b"\x08\x00\x08\x00")
    bare.write_bytes(whole[first:])
    header = read_header(bare)
    assert header.get("Rows") == ds.Rows
    assert header.pixel_length == 30


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 128 + b"DICM", b"\x08\x00" + b"\xff" * 300])
def test_what_is_not_dicom_says_so(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(NotDicomError, match="x"):
        read_header(path)


def test_a_malformed_value_is_left_out_and_named(tmp_path):
    path = save(data_set(ExplicitVRLittleEndian), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"0.5\\0.25", b"0.5\\a.25"))
    header = read_header(path)
    assert "PixelSpacing" not in header.values
    assert header.malformed == ("PixelSpacing",)


DEFLATE_RAW = -15
GROUP_9 = struct.pack("<HH2sHI", 0x0009, 0x1010, b"OB", 0, 1_000_000_000)
"""A private element in front of everything else that an image has, whose value is said to be a gigabyte."""


def zeros_that_inflate_to(size: int, deflater) -> list[bytes]:
    return [deflater.compress(bytes(10_000_000)) for _ in range(size // 10_000_000)]


def deflated_file(path: Path, *, before: int = 0, behind: int = 0) -> Path:
    """A small deflated image with a gigabyte or so of zeros before its image elements, or behind its pixels."""
    whole = save(data_set(DeflatedExplicitVRLittleEndian), path).read_bytes()
    start = whole.index(b"1.2.840.10008.1.2.1.99") + 22
    while whole[start : start + 2] == b"\x02\x00":  # what follows the transfer syntax in the file meta information
        start += 8 + struct.unpack_from("<H", whole, start + 6)[0]
    deflater = zlib.compressobj(9, zlib.DEFLATED, DEFLATE_RAW)
    parts = [whole[:start]]
    if before:
        parts += [deflater.compress(GROUP_9), *zeros_that_inflate_to(before, deflater)]
    parts += [deflater.compress(zlib.decompress(whole[start:], DEFLATE_RAW))]
    path.write_bytes(b"".join([*parts, *zeros_that_inflate_to(behind, deflater), deflater.flush()]))
    return path


@pytest.fixture
def little_memory():
    """Python's allocations of a test must stay below 200 MB: the longest header three times."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6, f"{peak / 1e6:.0f} MB"


def test_what_a_deflated_file_has_behind_its_header_is_not_inflated(tmp_path):
    path = deflated_file(tmp_path / "bomb.dcm", behind=100_000_000)
    tracemalloc.start()
    header = read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (header.get("Rows"), header.get("Columns"), header.pixel_length) == (3, 5, 30)
    assert header.transfer_syntax == DeflatedExplicitVRLittleEndian
    assert peak < 5e6, f"{peak / 1e6:.0f} MB"


def test_a_deflated_header_of_400_megabytes_is_refused(tmp_path, little_memory):
    path = deflated_file(tmp_path / "bomb.dcm", before=400_000_000)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(NotDicomError):
        read_header(path)


@pytest.mark.parametrize("damage", ["no preamble", "long file meta information"])
def test_what_pydicom_would_inflate_whole_is_refused(tmp_path, little_memory, damage):
    whole = deflated_file(tmp_path / "bomb.dcm", behind=400_000_000).read_bytes()
    if damage == "no preamble":
        whole = whole[132:]
    else:
        start = whole.index(b"1.2.840.10008.1.2.1.99") + 22
        whole = whole[:start] + struct.pack("<HH2sHI", 2, 0x102, b"OB", 0, 100_000) + bytes(100_000) + whole[start:]
    (tmp_path / "x.dcm").write_bytes(whole)
    with pytest.raises(NotDicomError):
        read_header(tmp_path / "x.dcm")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_millions_of_empty_elements_are_no_header(tmp_path, monkeypatch, syntax):
    """64 MB of zeros are 8 million of them, and so many zeros deflate to 64 kB."""
    monkeypatch.setattr("aneurysm.dicom.header._MOST_READS", 1000)
    whole = save(data_set(syntax), tmp_path / "x.dcm").read_bytes()
    meta = whole[: 144 + int.from_bytes(whole[140:144], "little")]
    deflater = zlib.compressobj(9, zlib.DEFLATED, DEFLATE_RAW)
    zeros = bytes(200_000)
    content = deflater.compress(zeros) + deflater.flush() if syntax.is_deflated else zeros
    (tmp_path / "x.dcm").write_bytes(meta + content)
    with pytest.raises(NotDicomError, match="more than a million elements"):
        read_header(tmp_path / "x.dcm")


def test_a_deflated_file_with_functional_groups_has_its_frames_and_its_syntax(tmp_path):
    ds = data_set(DeflatedExplicitVRLittleEndian)
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].SliceThickness = "2.5"
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    header = read_header(save(ds, tmp_path / "a.dcm"))
    assert header.dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2.5
    assert (header.transfer_syntax, header.pixel_length) == (DeflatedExplicitVRLittleEndian, 30)
    assert header.file_size == (tmp_path / "a.dcm").stat().st_size
    whole = (tmp_path / "a.dcm").read_bytes()
    start = len(whole) - 1
    while True:  # from the end: the one place from which on the bytes inflate to a data set with group 0008 first
        try:
            inflated = zlib.decompress(whole[start:], DEFLATE_RAW)
        except zlib.error:
            inflated = b""
        if inflated[:2] == b"\x08\x00":
            break
        start -= 1
    assert np.frombuffer(inflated, "<i2", 15, header.pixel_offset).tolist() == list(range(15))


@pytest.mark.parametrize("syntax", SYNTAXES[:3], ids=lambda s: s.name)
@pytest.mark.parametrize("without_preamble", [False, True])
def test_a_header_of_gigabytes_is_not_read_whole(tmp_path, little_memory, syntax, without_preamble):
    """A sparse file takes no room on the disk, and any number of lengths can point into it."""
    whole = save(data_set(syntax), tmp_path / "a.dcm").read_bytes()
    first = whole.index(b"\x00\x08\x00\x08" if syntax == ExplicitVRBigEndian else b"\x08\x00\x08\x00")
    order = "<" if syntax.is_little_endian else ">"
    length = 3 * 2**30
    implicit, explicit = struct.pack(f"{order}HHI", 8, 1, length), struct.pack(f"{order}HH2sHI", 8, 1, b"OB", 0, length)
    long = implicit if syntax.is_implicit_VR else explicit
    path = tmp_path / "sparse.dcm"
    path.write_bytes((b"" if without_preamble else whole[:first]) + long)
    with path.open("r+b") as file:
        file.seek(length, 2)
        file.write(whole[first:])
    with pytest.raises(NotDicomError):
        read_header(path)


def test_a_listed_value_of_megabytes_is_malformed(tmp_path):
    ds = data_set(ExplicitVRLittleEndian)
    ds["PatientID"].VR = "UT"
    ds.PatientID = "x" * 2_000_000
    header = read_header(save(ds, tmp_path / "a.dcm"))
    assert header.malformed == ("PatientID",)
    assert header.get("Rows") == 3


@pytest.mark.parametrize("keyword", ["GridFrameOffsetVector", "SliceLocationVector"])
def test_a_vector_has_a_number_for_each_of_thousands_of_frames(tmp_path, keyword):
    ds = data_set(ImplicitVRLittleEndian)
    numbers = [k * 0.6250001 for k in range(8000)]
    setattr(ds, keyword, [f"{number:.7f}" for number in numbers])
    path = save(ds, tmp_path / "a.dcm")
    for header in (read_header(path), read_with_pydicom(path)):
        assert header.malformed == ()
        assert header.values[keyword] == pytest.approx(numbers)
    setattr(ds, keyword, ["0"] * 200_000)
    assert read_header(save(ds, path)).malformed == (keyword,)


def test_sequences_nested_without_end_are_no_dicom(tmp_path):
    """100,000 deep, 20 bytes each: more than any stack holds."""
    whole = save(data_set(ExplicitVRLittleEndian), tmp_path / "a.dcm").read_bytes()
    first = whole.index(b"\x08\x00\x08\x00")
    opened = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    (tmp_path / "deep.dcm").write_bytes(whole[:first] + opened * 100_000 + whole[first:])
    with pytest.raises(NotDicomError):
        read_header(tmp_path / "deep.dcm")
