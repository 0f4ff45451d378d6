"""Shots and stored integers -> DICOM files, as scanners and the organisers of the challenge write them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from aneurysm.phantom.plan import SeriesPlan, make_uid
from aneurysm.phantom.shots import Shot
from aneurysm.phantom.storage import PADDING, PixelStorage

SlicePixels = npt.NDArray[Any]

_SYNTAX: dict[str, UID] = {
    "implicit": ImplicitVRLittleEndian,
    "no_preamble": ImplicitVRLittleEndian,
    "big_endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg_lossless": JPEGLosslessSV1,
    "jpeg_ls": JPEGLSLossless,
    "jpeg2000": JPEG2000Lossless,
}
_PLUGIN = {RLELossless: "gdcm", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}
_CT_IMAGE, _MR_IMAGE, _PET_IMAGE = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "4", "128"))
_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
_REPORT = "1.2.840.10008.5.1.4.1.1.88.11"

# fmt: off
TEST_TAGS = frozenset({
    "BitsAllocated", "BitsStored", "Columns", "FrameOfReferenceUID", "HighBit", "ImageOrientationPatient",
    "ImagePositionPatient", "InstanceNumber", "Modality", "PatientID", "PhotometricInterpretation",
    "PixelRepresentation", "PixelSpacing", "PlanarConfiguration", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "Rows", "SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "SliceThickness", "SpacingBetweenSlices",
    "StudyInstanceUID", "PixelData",
})
# fmt: on
"""What the test set keeps at the top level, with the pixels; TransferSyntaxUID, the 25th, is in the meta group."""

_SEQUENCE: dict[str, dict[str, Any]] = {
    "CTA": {"KVP": "120", "ContrastBolusAgent": "Iodine", "ScanOptions": "HELICAL"},
    "MRA": {
        "ScanningSequence": "GR", "SequenceName": "*fl3d1r", "AngioFlag": "Y", "EchoTime": "3.4",
        "RepetitionTime": "21", "MRAcquisitionType": "3D", "FlipAngle": "18",
    },
    "MRI T2": {
        "ScanningSequence": "SE", "SequenceVariant": "SK", "EchoTime": "98", "RepetitionTime": "4800",
        "MRAcquisitionType": "2D", "FlipAngle": "150",
    },
    "MRI T1post": {
        "ScanningSequence": "GR", "SequenceVariant": "SP", "EchoTime": "2.9", "RepetitionTime": "9.2",
        "MRAcquisitionType": "3D", "FlipAngle": "10", "ContrastBolusAgent": "Gadobutrol",
    },
}  # fmt: skip
_DESCRIPTION = {"CTA": "CTA HEAD", "MRA": "TOF MRA", "MRI T2": "T2 TSE TRA", "MRI T1post": "T1 POST GD"}


def transfer_syntax(plan: SeriesPlan) -> UID:
    """Return the transfer syntax of a series."""
    return next((_SYNTAX[q] for q in plan.quirks if q in _SYNTAX), ExplicitVRLittleEndian)


def number(value: float) -> str:
    """Return a DICOM decimal string: at most 16 characters."""
    text = f"{value:.7f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text[:16]


class SeriesWriter:
    """Writes the files of one series into ``folder``; ``spacing_tag_mm`` is SpacingBetweenSlices, or None."""

    def __init__(
        self, plan: SeriesPlan, storage: PixelStorage, folder: Path, thickness_mm: float, spacing_tag_mm: float | None
    ) -> None:
        self._plan = plan
        self._storage = storage
        self._folder = folder
        self._thickness = thickness_mm
        self._spacing = spacing_tag_mm
        self._syntax = transfer_syntax(plan)

    def write(self, shot: Shot, stored: SlicePixels, slope: float) -> None:
        """Write one single-frame file; ``stored`` is (rows, columns), or (rows, columns, 3) for RGB."""
        ds = self._common(shot.sop_uid, shot.shape)
        ds.InstanceNumber = shot.number
        if shot.number is None:
            del ds.InstanceNumber
        ds.ImagePositionPatient = [number(v) for v in shot.position_lps]
        ds.ImageOrientationPatient = [number(v) for v in (*shot.row, *shot.column)]
        ds.PixelSpacing = [number(v) for v in shot.spacing_mm]
        ds.RescaleSlope, ds.RescaleIntercept = number(slope), number(self._storage.intercept)
        ds.RescaleType = "HU" if self._plan.modality == "CTA" else "US"
        for keyword, value in shot.tags.items():
            setattr(ds, keyword, value)
        if self._plan.has("no_geometry"):
            del ds.ImagePositionPatient
            del ds.ImageOrientationPatient
        if self._plan.has("zero_spacing"):
            ds.PixelSpacing = ["0", "0"]
        if self._plan.has("mosaic"):
            ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        if shot.rgb:
            ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
            ds.BitsAllocated = ds.BitsStored = 8
            ds.HighBit, ds.PixelRepresentation = 7, 0
        self._finish(ds, stored, broken=shot.broken)

    def write_frames(self, shots: Sequence[Shot], stored: SlicePixels, slopes: Sequence[float]) -> None:
        """Write the one multi-frame file; ``stored`` is (frames, rows, columns)."""
        ds = self._common(multiframe_uid(self._plan), shots[0].shape)
        ds.SOPClassUID = _ENHANCED_MR
        ds.InstanceNumber = 1
        ds.NumberOfFrames = len(shots)
        del ds.SliceThickness
        if not self._plan.has("stripped_multiframe"):
            shared = Dataset()
            measures = Dataset()
            measures.PixelSpacing = [number(v) for v in shots[0].spacing_mm]
            measures.SliceThickness = number(self._thickness)
            shared.PixelMeasuresSequence = [measures]
            ds.SharedFunctionalGroupsSequence = [shared]
            ds.PerFrameFunctionalGroupsSequence = [
                self._group(shot, slope, i) for i, (shot, slope) in enumerate(zip(shots, slopes, strict=True))
            ]
        self._finish(ds, stored)

    def _group(self, shot: Shot, slope: float, index: int) -> Dataset:
        """Return the functional groups of one frame."""
        plane, position, content, transform = Dataset(), Dataset(), Dataset(), Dataset()
        plane.ImageOrientationPatient = [number(v) for v in (*shot.row, *shot.column)]
        position.ImagePositionPatient = [number(v) for v in shot.position_lps]
        if self._plan.has("default_geometry"):
            plane.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
            position.ImagePositionPatient = ["0", "0", "0"]
        content.DimensionIndexValues = [1, index + 1]
        content.InStackPositionNumber = index + 1
        content.StackID = "1"
        transform.RescaleSlope, transform.RescaleIntercept = number(slope), number(self._storage.intercept)
        transform.RescaleType = "US"
        group = Dataset()
        group.PlaneOrientationSequence = [plane]
        group.PlanePositionSequence = [position]
        group.FrameContentSequence = [content]
        group.PixelValueTransformationSequence = [transform]
        return group

    def write_strays(self) -> None:
        """Write files that are no part of the series: text, a report, a hidden file, an image of another series."""
        (self._folder / "README.txt").write_text("Not an image.\n")
        (self._folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        report = Dataset()
        report.SOPClassUID, report.SOPInstanceUID = _REPORT, make_uid(self._plan.seed, self._plan.index, "report")
        report.Modality, report.SeriesInstanceUID = "SR", self._plan.uid
        report.ValueType, report.ContinuityOfContent = "CONTAINER", "SEPARATE"
        _save(report, self._folder / f"{report.SOPInstanceUID}.dcm", ExplicitVRLittleEndian)

    def write_foreign(self, shot: Shot, stored: SlicePixels) -> None:
        """Write an image of another series."""
        ds = self._common(make_uid(self._plan.seed, self._plan.index, "foreign"), shot.shape)
        ds.SeriesInstanceUID = make_uid(self._plan.seed, self._plan.index, "foreign series")
        ds.ImagePositionPatient = [number(v) for v in shot.position_lps]
        ds.ImageOrientationPatient = [number(v) for v in (*shot.row, *shot.column)]
        ds.PixelSpacing = [number(v) for v in shot.spacing_mm]
        self._finish(ds, stored)

    def _common(self, sop_uid: str, shape: tuple[int, int]) -> Dataset:
        plan, storage = self._plan, self._storage
        ct = plan.modality == "CTA"
        ds = Dataset()
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if ct else ["ORIGINAL", "PRIMARY", "M", "ND"]
        ds.SOPClassUID = _CT_IMAGE if ct else _MR_IMAGE
        ds.SOPInstanceUID = sop_uid
        ds.Modality = "CT" if ct else "MR"
        if plan.has("other_modality"):
            ds.SOPClassUID, ds.Modality = _PET_IMAGE, "PT"
        ds.Manufacturer = "Phantom"
        ds.SeriesDescription = _DESCRIPTION[plan.modality]
        ds.PatientID = f"PHANTOM-{plan.seed}-{plan.index}"
        for keyword, value in _SEQUENCE[plan.modality].items():
            setattr(ds, keyword, value)
        ds.SliceThickness = number(self._thickness)
        if self._spacing is not None:
            ds.SpacingBetweenSlices = number(self._spacing)
        ds.StudyInstanceUID = make_uid(plan.seed, plan.index, "study")
        ds.SeriesInstanceUID = plan.uid
        ds.FrameOfReferenceUID = make_uid(plan.seed, plan.index, "frame of reference")
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME1" if storage.inverted else "MONOCHROME2"
        ds.Rows, ds.Columns = shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, storage.bits_stored, storage.bits_stored - 1
        ds.PixelRepresentation = int(storage.signed)
        if storage.padding:
            ds.add_new("PixelPaddingValue", "SS", PADDING)
        return ds

    def _finish(self, ds: Dataset, stored: SlicePixels, *, broken: bool = False) -> None:
        """Add the pixels in the transfer syntax, take out what the plan leaves out, and write."""
        _set_pixels(ds, stored, self._syntax, broken=broken)
        if self._plan.has("test_tags", "stripped_multiframe"):
            for element in [e for e in ds if e.keyword not in TEST_TAGS]:
                del ds[element.tag]
        path = self._folder / f"{ds.SOPInstanceUID}.dcm"
        _save(ds, path, self._syntax, preamble=not self._plan.has("no_preamble"))


def multiframe_uid(plan: SeriesPlan) -> str:
    """SOPInstanceUID of the one file of a multi-frame series."""
    return make_uid(plan.seed, plan.index, "multiframe")


def _set_pixels(ds: Dataset, stored: SlicePixels, syntax: UID, *, broken: bool) -> None:
    vr = "OB" if stored.dtype.itemsize == 1 else "OW"
    if syntax == JPEGLosslessSV1:
        frames = stored if stored.ndim == 3 and ds.SamplesPerPixel == 1 else stored[None]
        encoded = [_jpeg_lossless(f, ds) for f in frames]
        ds.add_new("PixelData", "OB", encapsulate(encoded))
    elif syntax in _PLUGIN:
        native = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
        with warnings.catch_warnings():
            # pydicom warns that a compressed Samples per Pixel 3 image keeps RGB, which is what is meant.
            warnings.simplefilter("ignore")
            ds.compress(syntax, native, encoding_plugin=_PLUGIN[syntax], generate_instance_uid=False)
    else:
        dtype = stored.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")
        data = np.ascontiguousarray(stored, dtype).tobytes()
        if broken:
            data = data[: len(data) // 4 * 2]
        ds.add_new("PixelData", vr, data + b"\0" * (len(data) % 2))
    if broken and syntax.is_encapsulated:
        # Garbage, since some decoders fill up a stream that breaks off, and say nothing.
        ds.add_new("PixelData", "OB", encapsulate([b"\x00\x01" * 20]))


def _jpeg_lossless(frame: SlicePixels, ds: Dataset) -> bytes:
    """One frame as a JPEG lossless stream, first-order prediction; pydicom has no encoder for it."""
    import gdcm

    # An image made in Python dies with its wrapper while gdcm still counts on it; a writer's own does not.
    writer = gdcm.ImageWriter()
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimension(0, int(ds.Columns))
    image.SetDimension(1, int(ds.Rows))
    kinds = gdcm.PhotometricInterpretation
    image.SetPhotometricInterpretation(kinds(kinds.RGB if ds.SamplesPerPixel == 3 else kinds.MONOCHROME2))
    bits = (ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation)
    image.SetPixelFormat(gdcm.PixelFormat(*map(int, bits)))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    data = np.ascontiguousarray(frame).tobytes()
    element.SetByteStringValue(data)
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(image)
    if not change.Change():
        raise RuntimeError("gdcm could not encode JPEG lossless")
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    parts = [fragments.GetFragment(i).GetByteValue() for i in range(fragments.GetNumberOfFragments())]
    out = b""
    for part in parts:
        buffer = part.GetBuffer()
        out += buffer.encode("utf-8", "surrogateescape") if isinstance(buffer, str) else bytes(buffer)
    return out


def _save(ds: Dataset, path: Path, syntax: UID, *, preamble: bool = True) -> None:
    if not preamble:
        # What was written before there was a part 10: the data set alone.
        pydicom.dcmwrite(path, ds, implicit_vr=True, little_endian=True, enforce_file_format=False)
        return
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
