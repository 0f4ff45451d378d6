"""Small data sets for tests of whole runs: synthetic series in the RSNA layout, and the real series at hand."""

from __future__ import annotations

import csv
import os
import tarfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

ROOT = Path(__file__).resolve().parents[2]
UID_ROOT = "1.2.826.0.1.3680043.8.498.7"
LABELS = (
    "Left Infraclinoid Internal Carotid Artery",
    "Right Infraclinoid Internal Carotid Artery",
    "Left Supraclinoid Internal Carotid Artery",
    "Right Supraclinoid Internal Carotid Artery",
    "Left Middle Cerebral Artery",
    "Right Middle Cerebral Artery",
    "Anterior Communicating Artery",
    "Left Anterior Cerebral Artery",
    "Right Anterior Cerebral Artery",
    "Left Posterior Communicating Artery",
    "Right Posterior Communicating Artery",
    "Basilar Tip",
    "Other Posterior Circulation",
    "Aneurysm Present",
)


def real_data_root() -> Path | None:
    """The folder of real series, or None where there is none."""
    given = os.environ.get("ANEURYSM_REAL_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data" / "real"
    return folder if folder.is_dir() else None


def unpack_real_series(name: str, target: Path) -> Path:
    """Copy or unpack the DICOM files of the real series `name` into `target`, writable; return `target`."""
    root = real_data_root()
    assert root is not None
    source = root / name
    archive = source / "dicom.tar.xz"
    target.mkdir(parents=True, exist_ok=True)
    if archive.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        return target
    folder = source / "dicom" if (source / "dicom").is_dir() else source
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return target


def head_phantom(shape: tuple[int, int, int], *, seed: int, ct: bool = True) -> np.ndarray:
    """A skull, a brain, some bright vessels and noise: (slices, rows, columns), HU for CT, else 0 to 1500."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    radius = np.sqrt((z / 1.2) ** 2 + (y / 0.9) ** 2 + (x / 0.75) ** 2)
    head = np.where(radius < 1.0, 900.0, -1000.0)
    head = np.where(radius < 0.9, 40.0 + 20.0 * np.broadcast_to(x, shape), head)
    for _ in range(4):
        cy, cx = rng.uniform(-0.4, 0.4, 2)
        head = np.where((y - cy - 0.2 * z) ** 2 + (x - cx) ** 2 < 0.004, 350.0, head)
    head = head + rng.normal(0, 8, shape)
    return head if ct else np.clip((head + 1000) * 0.75, 0, 1500)


def write_series(
    folder: Path,
    uid: str,
    *,
    shape: tuple[int, int, int] = (12, 64, 64),
    spacing_mm: tuple[float, float, float] = (5.0, 3.0, 3.0),
    modality: str = "CT",
    seed: int = 0,
) -> list[str]:
    """Write an axial series of single-frame files; return SOPInstanceUIDs, bottom slice first."""
    folder.mkdir(parents=True, exist_ok=True)
    ct = modality == "CT"
    volume = head_phantom(shape, seed=seed, ct=ct)
    stored = np.clip(np.rint(volume + (1024 if ct else 0)), 0, 4095).astype(np.uint16)
    order = np.random.default_rng(seed).permutation(shape[0])  # neither names nor InstanceNumber tell the order
    instances = [f"{uid}.{k + 1}" for k in range(shape[0])]
    for k in range(shape[0]):
        ds = Dataset()
        ds.SOPClassUID = CTImageStorage if ct else MRImageStorage
        ds.SOPInstanceUID = instances[k]
        ds.SeriesInstanceUID = uid
        ds.StudyInstanceUID = f"{uid}.0.1"
        ds.FrameOfReferenceUID = f"{uid}.0.2"
        ds.PatientID = f"patient-{seed}"
        ds.PatientName = "Secret^Name"
        ds.Modality = modality
        ds.InstanceNumber = int(order[k]) + 1
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-100.0, -90.0, -20.0 + k * spacing_mm[0]]
        ds.PixelSpacing = [spacing_mm[1], spacing_mm[2]]
        ds.SliceThickness = spacing_mm[0]
        ds.Rows, ds.Columns = shape[1:]
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        if ct:
            ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
        ds.PixelData = stored[k].tobytes()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / f"{order[k]:04d}.dcm", enforce_file_format=True)
    return instances


def write_rsna_data(
    root: Path,
    *,
    n_series: int = 6,
    shape: tuple[int, int, int] = (12, 64, 64),
    spacing_mm: tuple[float, float, float] = (5.0, 3.0, 3.0),
) -> list[str]:
    """Data in the RSNA layout, series of several sizes, a lesion in every other one; return UIDs."""
    root.mkdir(parents=True, exist_ok=True)
    uids = [f"{UID_ROOT}.{i + 1}" for i in range(n_series)]
    with (
        (root / "train.csv").open("w", newline="") as train,
        (root / "train_localizers.csv").open("w", newline="") as loc,
    ):
        rows, lesions = csv.writer(train), csv.writer(loc)
        rows.writerow(["SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS])
        lesions.writerow(["SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location"])
        for i, uid in enumerate(uids):
            size = (shape[0] + i, shape[1], shape[2])
            modality = "MR" if i % 3 == 2 else "CT"
            instances = write_series(
                root / "series" / uid, uid, shape=size, spacing_mm=spacing_mm, modality=modality, seed=i
            )
            positive = i % 2 == 0
            flags = [int(positive and label in ("Basilar Tip", "Aneurysm Present")) for label in LABELS]
            rows.writerow([uid, 50 + i, "Female", "MRA" if modality == "MR" else "CTA", *flags])
            if positive:
                point = {"x": shape[2] / 2 + 0.25, "y": shape[1] / 2 - 0.5}
                lesions.writerow([uid, instances[size[0] // 2], str(point), "Basilar Tip"])
    return uids


def write_vessel_mask(
    root: Path,
    uid: str,
    *,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float] = (5.0, 3.0, 3.0),
) -> None:
    """A mask on the grid of :func:`write_series`: value 5 on the right, 6 on the left, 2 in the middle."""
    voxels = np.zeros(shape, np.uint8)
    rows, columns = shape[1] // 2, shape[2]
    voxels[2:-2, rows - 4 : rows + 4, columns // 4 - 3 : columns // 4 + 3] = 5
    voxels[2:-2, rows - 4 : rows + 4, 3 * columns // 4 - 3 : 3 * columns // 4 + 3] = 6
    voxels[2:-2, rows - 4 : rows + 4, columns // 2 - 3 : columns // 2 + 3] = 2
    image = sitk.GetImageFromArray(voxels)
    image.SetOrigin((-100.0, -90.0, -20.0))
    image.SetSpacing(spacing_mm[::-1])
    folder = root / "segmentations"
    folder.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(folder / f"{uid}_cowseg.nii"))
