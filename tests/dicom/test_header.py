"""The walker against pydicom: the same values from the same bytes, for every real file that there is.

Compared are the listed elements and where the pixel data lies; not what neither reads.
"""

from __future__ import annotations

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

from aneurysm.dicom import header as header_module
from aneurysm.dicom.header import NotDicomError, read_header

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
    walked, parsed = read_header(path), header_module._read_with_pydicom(path, path.stat().st_size)
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
        parsed = header_module._read_with_pydicom(path, path.stat().st_size)
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
