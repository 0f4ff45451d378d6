"""Stored pixel values: how many bits, which sign, which rescale, what stands in the bits that mean nothing."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from aneurysm.dicom.frame import Frame, PixelFormat, Rescale

JPEG_BASELINE = UID("1.2.840.10008.1.2.4.50")
JPEG_EXTENDED = UID("1.2.840.10008.1.2.4.51")
JPEG_LOSSLESS_P14 = UID("1.2.840.10008.1.2.4.57")
JPEG_LOSSLESS = UID("1.2.840.10008.1.2.4.70")

_GDCM_SYNTAX = {
    JPEG_BASELINE: gdcm.TransferSyntax.JPEGBaselineProcess1,
    JPEG_EXTENDED: gdcm.TransferSyntax.JPEGExtendedProcess2_4,
    JPEG_LOSSLESS_P14: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEG_LOSSLESS: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
}
_PIXEL_KEYWORDS = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """How values become the integers in a file: ``value = stored * slope + intercept``."""

    bits_allocated: int = 16
    bits_stored: int = 16
    high_bit: int | None = None  # bits_stored - 1 where not given
    signed: bool = True
    slope: float | None = 1.0
    intercept: float | None = 0.0
    inverted: bool = False  # MONOCHROME1
    garbage: int | None = None  # seed of what stands in the unused bits

    @property
    def top(self) -> int:
        return self.bits_stored - 1 if self.high_bit is None else self.high_bit

    @property
    def limits(self) -> tuple[int, int]:
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1

    def store(self, values: np.ndarray) -> np.ndarray:
        """The integers that stand for ``values`` (int64), refusing what does not fit: no test wants a silent clip."""
        stored = np.rint((values - (self.intercept or 0.0)) / (self.slope or 1.0)).astype(np.int64)
        low, high = self.limits
        assert stored.min() >= low, f"{stored.min()} does not fit {self}"
        assert stored.max() <= high, f"{stored.max()} does not fit {self}"
        if self.inverted:
            stored = (low + high) - stored
        return stored

    def cells(self, stored: np.ndarray) -> np.ndarray:
        """Pixel cells as unsigned integers of BitsAllocated bits, the value in its bits and garbage in the others."""
        shift = self.top - (self.bits_stored - 1)
        mask = ((1 << self.bits_stored) - 1) << shift
        cells = (stored.astype(np.int64) << shift) & mask
        unused = ((1 << self.bits_allocated) - 1) & ~mask
        if self.garbage is not None:
            noise = np.random.default_rng(self.garbage).integers(0, 1 << self.bits_allocated, cells.shape)
            cells = cells | (noise & unused)
        elif self.signed and shift == 0:
            cells = stored.astype(np.int64) & ((1 << self.bits_allocated) - 1)  # sign extension, as scanners do
        return cells.astype(f"<u{self.bits_allocated // 8}")

    def describe(self, dataset: Dataset) -> None:
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME1" if self.inverted else "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored = self.bits_allocated, self.bits_stored
        dataset.HighBit, dataset.PixelRepresentation = self.top, int(self.signed)


def compressed_frame(path: Path, encoded: bytes, fmt: PixelFormat) -> Frame:
    """Write a stream as the encapsulated pixel data of a file without a header, and return its frame."""
    path.write_bytes(encapsulate([encoded], has_bot=False))
    return Frame(
        path=path,
        index=0,
        sop_uid="1.2",
        format=fmt,
        pixel_offset=0,
        pixel_length=-1,
        pixel_vr="OB",
        position=None,
        orientation=None,
        spacing_mm=None,
        rescale=Rescale(),
        padding=None,
        instance_number=0.0,
    )


def put_pixels(dataset: Dataset, storage: Storage, stored: np.ndarray, syntax: UID, fragments: int = 1) -> None:
    """Set PixelData of a dataset whose file_meta is to say ``syntax``; ``stored`` has (frames, rows, columns)."""
    storage.describe(dataset)
    cells = storage.cells(stored)
    if syntax == ExplicitVRBigEndian:
        cells = cells.byteswap()
    raw = cells.tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OW" if storage.bits_allocated > 8 else "OB"
    if not syntax.is_compressed or syntax.is_deflated:
        dataset.file_meta.TransferSyntaxUID = syntax
        return
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax == JPEG_EXTENDED and storage.bits_stored == 12:
        assert not storage.signed
        _twelve_bits(dataset, len(stored))
    elif syntax in _GDCM_SYNTAX:
        _compress_by_gdcm(dataset, len(stored), syntax)
    else:
        # GDCM's RLE encoder aborts the process on 8-bit images of odd size.
        plugin = "pydicom" if syntax == RLELossless else ""
        dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    if fragments > 1:
        frames = list(generate_frames(dataset.PixelData, number_of_frames=len(stored)))
        dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=len(stored) > 1)
        dataset["PixelData"].is_undefined_length = True


def _twelve_bits(dataset: Dataset, frames: int) -> None:
    """JPEG Extended of 12 bits, which GDCM reads but can't write: it would write 16 bits, which JPEG does not have.

    The two differ only in the level that is subtracted before the transform, half the range. So: encode the values
    with the difference added, then correct the precision in the frame header.
    """
    cells = np.frombuffer(dataset.PixelData, "<u2") + np.uint16((1 << 15) - (1 << 11))
    dataset.PixelData = cells.tobytes()
    dataset.BitsStored, dataset.HighBit = 16, 15
    _compress_by_gdcm(dataset, frames, JPEG_EXTENDED)
    dataset.BitsStored, dataset.HighBit = 12, 11
    streams = list(generate_frames(dataset.PixelData, number_of_frames=frames))
    header = b"\xff\xc1\x00\x0b"
    assert all(stream.count(header + b"\x10") == 1 for stream in streams)
    dataset.PixelData = encapsulate([s.replace(header + b"\x10", header + b"\x0c") for s in streams])
    dataset["PixelData"].is_undefined_length = True


def _compress_by_gdcm(dataset: Dataset, frames: int, syntax: UID) -> None:
    """Only the codestreams are GDCM's: it would rewrite the geometry and the rescale of the file."""
    size = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    codestreams = []
    for index in range(frames):
        frame = Dataset()
        frame.file_meta = FileMetaDataset()
        frame.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        frame.SOPClassUID, frame.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
        for keyword in _PIXEL_KEYWORDS:
            frame[keyword] = dataset[keyword]
        raw = dataset.PixelData[index * size : (index + 1) * size]
        frame.PixelData = raw + b"\0" * (len(raw) % 2)
        frame["PixelData"].VR = dataset["PixelData"].VR
        codestreams += _frames_by_gdcm(frame, syntax)
    dataset.PixelData = encapsulate(codestreams)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax


def _frames_by_gdcm(frame: Dataset, syntax: UID) -> list[bytes]:
    # By way of files: GDCM's Python objects do not keep alive what they point at.
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before"), Path(folder, "after")
        frame.save_as(before, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(before))
        assert reader.Read(), "gdcm can't read back what pydicom wrote"
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(_GDCM_SYNTAX[syntax]))
        change.SetInput(reader.GetImage())
        assert change.Change(), f"gdcm can't write {syntax.name} for {frame.BitsStored} bits"
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(after))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write(), f"gdcm can't write {syntax.name}"
        compressed = pydicom.dcmread(after)
    assert compressed.file_meta.TransferSyntaxUID == syntax
    for keyword in _PIXEL_KEYWORDS:
        assert compressed[keyword].value == frame[keyword].value, f"gdcm changed {keyword}"
    return list(generate_frames(compressed.PixelData, number_of_frames=1))
