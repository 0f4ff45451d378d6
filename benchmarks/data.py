"""A generated head CTA as DICOM files, one file a slice, as large and as noisy as the real ones.

What the timings depend on is here as in a scanner's file: the size, about a hundred header elements with
a private block among them, 12 bits in 16 with an intercept, noise that is correlated in plane (it decides
how well anything compresses), and air around the head.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Iterator

SPACING_MM = (0.6, 0.45, 0.45)
SYNTAXES = {
    "raw": ExplicitVRLittleEndian,
    "jpeg-lossless": JPEGLosslessSV1,
    "jpeg-ls": JPEGLSLossless,
    "j2k": JPEG2000Lossless,
    "rle": RLELossless,
}
_ROOT = "1.2.826.0.1.3680043.8.498.77"
_AIR, _SOFT_TISSUE, _BONE, _VESSEL, _TABLE = -1000.0, 35.0, 1100.0, 380.0, -600.0
_NOISE_HU = 12.0
_NOISE_SLICES = 7


def head_slices(n_slices: int, size: int = 512, seed: int = 1) -> Iterator[np.ndarray]:
    """Slices of a head, foot to head: uint16 (size, size), HU = stored - 1024."""
    rng = np.random.default_rng(seed)
    noise = [_noise(rng, size) for _ in range(_NOISE_SLICES)]
    y_mm, x_mm = (np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2) * SPACING_MM[1] * 512 / size
    for k in range(n_slices):
        z = 2 * (k + 0.5) / n_slices - 1  # -1 at the lowest slice, 1 at the vertex
        hu = _anatomy(x_mm, y_mm, z)
        # A different shift each time, so that no two slices have the same noise.
        shift = tuple(rng.integers(0, size, 2))
        hu += np.roll(noise[k % _NOISE_SLICES], shift, (0, 1)) * (0.4 + 0.6 * (hu > _AIR / 2))
        yield np.clip(np.rint(hu + 1024), 0, 4095).astype(np.uint16)


def write_series(folder: Path, n_slices: int, syntax: str = "raw", size: int = 512) -> Path:
    """Write a series in the RSNA layout below `folder` and return the series' own folder."""
    series_uid = f"{_ROOT}.{n_slices}.{list(SYNTAXES).index(syntax) + 1}"
    series = folder / "series" / series_uid
    series.mkdir(parents=True, exist_ok=True)
    for k, pixels in enumerate(head_slices(n_slices, size)):
        dataset = _header(k, series_uid, size)
        dataset.set_pixel_data(pixels, "MONOCHROME2", 12)
        # File names in a shuffled order: reading them sorted by name must not be what makes a tool right.
        path = series / f"{_ROOT}.{n_slices}.{(k * 7919) % 100003}.dcm"
        if syntax != "raw":
            _compress(dataset, syntax, pixels)
        dataset.save_as(path, enforce_file_format=True)
    return series


def _compress(dataset: Dataset, syntax: str, pixels: np.ndarray) -> None:
    if syntax == "jpeg-lossless":
        dataset.PixelData = _encapsulated(_gdcm_frame(pixels))
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    else:
        dataset.compress(SYNTAXES[syntax], generate_instance_uid=False)


def _encapsulated(frame: bytes) -> bytes:
    from pydicom.encaps import encapsulate

    return encapsulate([frame], has_bot=False)


def _gdcm_frame(pixels: np.ndarray) -> bytes:
    """One slice as a JPEG lossless (process 14, SV1) frame; pydicom itself has no encoder for it."""
    import gdcm

    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((pixels.shape[1], pixels.shape[0], 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(pixels.tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(image)
    if not change.Change():
        msg = "GDCM could not encode JPEG lossless"
        raise RuntimeError(msg)
    fragment = change.GetOutput().GetDataElement().GetSequenceOfFragments().GetFragment(0)
    value = fragment.GetByteValue().GetBuffer()
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    white = rng.standard_normal((size, size), np.float32)
    # A soft-tissue kernel leaves noise correlated over about a pixel and a half.
    smooth = ndimage.gaussian_filter(white, 0.8, mode="wrap")
    return smooth * np.float32(_NOISE_HU / smooth.std())


def _anatomy(x_mm: np.ndarray, y_mm: np.ndarray, z: float) -> np.ndarray:
    width = np.float32(np.sqrt(max(1 - z * z, 0.02)))
    r = np.sqrt((x_mm / (76 * width)) ** 2 + (y_mm / (95 * width)) ** 2)
    hu = np.full(x_mm.shape, _AIR, np.float32)
    hu[(np.abs(y_mm - 105) < 3) & (np.abs(x_mm) < 90)] = _TABLE
    hu[r < 1.08] = _SOFT_TISSUE  # skin
    hu[r < 1.03] = _BONE
    brain = r < 0.95
    hu[brain] = _SOFT_TISSUE
    hu[(np.hypot(x_mm / 14, (y_mm + 5) / 30) < 0.8 * width) & brain] = 5  # ventricles
    for side in (-1, 1):
        for turn, radius_mm in ((3.0, 2.2), (5.0, 1.5), (9.0, 1.0)):
            centre_x = side * (10 + 40 * abs(np.sin(turn * z))) * width
            centre_y = 60 * width * np.cos(turn * z + side)
            hu[np.hypot(x_mm - centre_x, y_mm - centre_y) < radius_mm] = _VESSEL
    return hu


def _header(k: int, series_uid: str, size: int) -> Dataset:
    spacing_mm = SPACING_MM[1] * 512 / size
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"{series_uid}.{k + 1}"
    ds.SeriesInstanceUID, ds.StudyInstanceUID = series_uid, f"{_ROOT}.1"
    ds.FrameOfReferenceUID = f"{_ROOT}.2"
    ds.Modality, ds.PatientID, ds.PatientName = "CT", "generated", "generated"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Manufacturer, ds.ManufacturerModelName = "generated", "benchmark"
    ds.SeriesDescription, ds.ProtocolName = "CTA HEAD 0.6", "CTA"
    ds.KVP, ds.Exposure, ds.XRayTubeCurrent, ds.ConvolutionKernel = 100, 180, 300, "H20f"
    ds.GantryDetectorTilt, ds.PatientPosition, ds.SliceThickness = 0, "HFS", SPACING_MM[0]
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 4, 1, k + 1
    corner = -(size - 1) / 2 * spacing_mm
    ds.ImagePositionPatient = [corner, corner, round(k * SPACING_MM[0] - 90, 4)]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [spacing_mm, spacing_mm]
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = 300, 800
    block = ds.private_block(0x0029, "BENCHMARK HEADER", create=True)
    for i in range(60):
        block.add_new(i, "LO", f"private value {i}")
    block.add_new(0x70, "OB", bytes(4096))
    return ds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--syntax", choices=SYNTAXES, default="raw")
    arguments = parser.parse_args()
    print(write_series(arguments.folder, arguments.slices, arguments.syntax))


if __name__ == "__main__":
    main()
