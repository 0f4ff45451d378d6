"""Write an acquisition as DICOM files: one per slice, or one enhanced multi-frame file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat

from tests.support.acquisition import Acquisition
from tests.support.pattern import Pattern
from tests.support.pixels import Storage, put_pixels

CT = Storage(bits_stored=12, signed=False, intercept=-1024.0)
MR = Storage(bits_stored=12, signed=False, slope=None, intercept=None)

# What the test set keeps (TransferSyntaxUID stands in the file meta information, which is kept anyway).
TEST_SET_TAGS = frozenset([
    "BitsAllocated", "BitsStored", "Columns", "FrameOfReferenceUID", "HighBit", "ImageOrientationPatient",
    "ImagePositionPatient", "InstanceNumber", "Modality", "PatientID", "PhotometricInterpretation",
    "PixelRepresentation", "PixelSpacing", "PlanarConfiguration", "RescaleIntercept", "RescaleSlope",
    "RescaleType", "Rows", "SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "SliceThickness",
    "SpacingBetweenSlices", "StudyInstanceUID",
])  # fmt: skip

Edit = Callable[[Dataset, int], None]


@dataclass(frozen=True)
class Written:
    """A series on disk: the files in the order of the acquisition's slices."""

    uid: str
    acquisition: Acquisition
    paths: tuple[Path, ...]
    sops: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.paths[0].parent


def numbers(values: Sequence[float]) -> list[DSfloat]:
    """Decimal strings with as many digits as fit (16 characters)."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def new_uid(*names: object) -> str:
    """A UID that is the same in every run, in an order that has nothing to do with that of the slices."""
    return str(generate_uid(entropy_srcs=[str(name) for name in names]))


def write_series(
    folder: Path,
    acquisition: Acquisition,
    values: Pattern | np.ndarray,
    *,
    uid: str | None = None,
    modality: str = "CT",
    storage: Storage | Sequence[Storage] | None = None,
    syntax: UID = ExplicitVRLittleEndian,
    fragments: int = 1,
    stripped: bool = False,
    extension: str = ".dcm",
    edit: Edit | None = None,
    label: str = "",
    first_number: int = 1,
) -> Written:
    """Write one file per slice.

    ``values`` are physical (HU or MR signal): a pattern, or (slices, rows, columns). ``edit`` may change a dataset
    last of all, given the index of its slice. ``label`` makes the SOP instances of a second call distinct.
    InstanceNumber counts against the order of the slices, so that nothing can lean on it.
    """
    uid = uid or new_uid(folder)
    grid = acquisition.sample(values) if isinstance(values, Pattern) else np.asarray(values)
    assert grid.shape == (len(acquisition), *acquisition.shape)
    storage = storage or (CT if modality == "CT" else MR)
    storages = [storage] * len(grid) if isinstance(storage, Storage) else list(storage)
    folder.mkdir(parents=True, exist_ok=True)
    paths, sops = [], []
    common = _common(uid, modality, CTImageStorage if modality == "CT" else MRImageStorage)
    common.Rows, common.Columns = acquisition.shape
    common.ImageOrientationPatient = numbers(acquisition.orientation)
    common.PixelSpacing = numbers(acquisition.spacing_mm)
    common.SliceThickness = DSfloat(1.0)
    for index, (image, kept) in enumerate(zip(grid, storages, strict=True)):
        dataset = Dataset()
        for element in common:  # copies: assigning to an attribute changes the element in place
            dataset.add(copy.copy(element))
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.MediaStorageSOPClassUID = common.SOPClassUID
        dataset.SOPInstanceUID = new_uid(uid, label, index)
        dataset.InstanceNumber = first_number + len(grid) - 1 - index
        dataset.ImagePositionPatient = numbers(acquisition.positions[index])
        if kept.slope is not None:
            dataset.RescaleSlope, dataset.RescaleIntercept = numbers([kept.slope, kept.intercept or 0.0])
            dataset.RescaleType = "HU" if modality == "CT" else "US"
        put_pixels(dataset, kept, kept.store(image)[None], syntax, fragments)
        if edit is not None:
            edit(dataset, index)
        if stripped:
            strip(dataset)
        path = folder / f"{dataset.SOPInstanceUID}{extension}"
        save(dataset, path)
        paths.append(path)
        sops.append(str(dataset.SOPInstanceUID))
    return Written(uid, acquisition, tuple(paths), tuple(sops))


def write_multiframe(
    folder: Path,
    acquisition: Acquisition,
    values: Pattern | np.ndarray,
    *,
    uid: str | None = None,
    modality: str = "MR",
    storage: Storage | Sequence[Storage] | None = None,
    syntax: UID = ExplicitVRLittleEndian,
    fragments: int = 1,
    stripped: bool = False,
    edit: Callable[[Dataset], None] | None = None,
    edit_frame: Edit | None = None,
) -> Written:
    """Write one enhanced file whose frame ``f`` is slice ``f`` of the acquisition.

    Geometry and rescale stand in the functional groups only. ``edit_frame`` gets each item of the per-frame groups.
    """
    uid = uid or new_uid(folder)
    grid = acquisition.sample(values) if isinstance(values, Pattern) else np.asarray(values)
    storage = storage or (CT if modality == "CT" else MR)
    storages = [storage] * len(grid) if isinstance(storage, Storage) else list(storage)
    dataset = _common(uid, modality, EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage)
    dataset.SOPInstanceUID = new_uid(uid, "enhanced")
    dataset.InstanceNumber = 1
    dataset.Rows, dataset.Columns = acquisition.shape
    dataset.NumberOfFrames = len(grid)
    dataset.SharedFunctionalGroupsSequence = _items(
        PixelMeasuresSequence=_items(PixelSpacing=numbers(acquisition.spacing_mm), SliceThickness=DSfloat(1.0)),
        PlaneOrientationSequence=_items(ImageOrientationPatient=numbers(acquisition.orientation)),
    )
    frames = []
    for index, kept in enumerate(storages):
        frame = _items(
            FrameContentSequence=_items(StackID="1", InStackPositionNumber=len(grid) - index),
            PlanePositionSequence=_items(ImagePositionPatient=numbers(acquisition.positions[index])),
        )[0]
        if kept.slope is not None:
            slope, intercept = numbers([kept.slope, kept.intercept or 0.0])
            frame.PixelValueTransformationSequence = _items(
                RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU" if modality == "CT" else "US"
            )
        if edit_frame is not None:
            edit_frame(frame, index)
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    stored = np.stack([kept.store(image) for image, kept in zip(grid, storages, strict=True)])
    put_pixels(dataset, storages[0], stored, syntax, fragments)
    if edit is not None:
        edit(dataset)
    if stripped:
        strip(dataset)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{dataset.SOPInstanceUID}.dcm"
    save(dataset, path)
    return Written(uid, acquisition, (path,), (str(dataset.SOPInstanceUID),))


def strip(dataset: Dataset) -> None:
    """Leave what the test set leaves."""
    for element in list(dataset):
        if element.keyword not in TEST_SET_TAGS | {"PixelData"}:
            del dataset[element.tag]


def save(dataset: Dataset, path: Path) -> None:
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)


def unsigned(storage: Storage) -> Storage:
    return replace(storage, signed=False)


def _common(uid: str, modality: str, sop_class: UID) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPClassUID = sop_class
    dataset.SeriesInstanceUID = uid
    dataset.StudyInstanceUID = new_uid(uid, "study")
    dataset.FrameOfReferenceUID = new_uid(uid, "frame of reference")
    dataset.Modality = modality
    dataset.PatientID = "SYNTHETIC"
    dataset.PatientName = "Nobody^Real"
    dataset.PatientPosition = "HFS"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
    if modality == "CT":
        dataset.KVP = DSfloat(120)
    return dataset


def _items(**elements: object) -> DicomSequence:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return DicomSequence([item])
