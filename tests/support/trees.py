"""The layouts in which series come: the RSNA data set's, with its tables and masks, or any free tree."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

from aneurysm.labels import LABELS

LOCATION = LABELS[6]
TRAIN_COLUMNS = ["SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS]
LOCALIZER_COLUMNS = ["SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location"]


@dataclass
class RsnaTree:
    """A data folder in RSNA's layout; ``write_tables`` is called once all series are declared."""

    root: Path
    train: list[list[object]] = field(default_factory=list)
    localizers: list[list[str]] = field(default_factory=list)

    def folder(self, uid: str) -> Path:
        return self.root / "series" / uid

    def declare(self, uid: str, modality: str, positive: Sequence[str] = ()) -> None:
        present = [int(label in positive) for label in LABELS[:13]]
        self.train.append([uid, 63, "Female", modality, *present, int(bool(positive))])

    def localize(
        self, uid: str, sop: str, x: float, y: float, location: str = LOCATION, frame: int | None = None
    ) -> None:
        point = {"x": x, "y": y} | ({} if frame is None else {"f": frame})
        self.localizers.append([uid, sop, str(point), location])

    def write_tables(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(self.train, columns=TRAIN_COLUMNS).to_csv(self.root / "train.csv", index=False)
        table = pd.DataFrame(self.localizers, columns=LOCALIZER_COLUMNS)
        table.to_csv(self.root / "train_localizers.csv", index=False)
        return self.root

    def write_mask(self, uid: str, mask: sitk.Image, *, nested: bool = False) -> Path:
        """The mask as ``<uid>_cowseg.nii`` and, beside it, an image ``<uid>.nii`` that must not be taken for it."""
        folder = self.root / "segmentations" / (uid if nested else "")
        folder.mkdir(parents=True, exist_ok=True)
        decoy = sitk.Cast(mask, sitk.sitkInt16) * 7 + 3
        decoy.CopyInformation(mask)
        sitk.WriteImage(decoy, str(folder / f"{uid}.nii"))
        sitk.WriteImage(mask, str(folder / f"{uid}_cowseg.nii"))
        return folder / f"{uid}_cowseg.nii"


def mask_image(values: np.ndarray, affine_lps: np.ndarray) -> sitk.Image:
    """An ITK image of a (k, j, i) array whose 4x4 affine maps (i, j, k, 1) to LPS mm."""
    image = sitk.GetImageFromArray(values.astype(np.uint8))
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    image.SetSpacing([float(s) for s in spacing])
    image.SetDirection((affine_lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine_lps[:3, 3].tolist())
    return image


def write_nifti_by_hand(path: Path, values: np.ndarray, affine_lps: np.ndarray) -> None:
    """A NIfTI-1 file made byte by byte: independent of ITK's idea of where a NIfTI voxel lies.

    NIfTI's world is RAS: x and y change sign against DICOM's LPS. ``values`` is (k, j, i), uint8.
    """
    affine_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *values.shape[::-1], 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 2, 8)  # datatype uint8, bits per voxel
    struct.pack_into("<8f", header, 76, 1.0, *spacing, 0, 0, 0, 0)
    struct.pack_into("<fff", header, 108, 352.0, 1.0, 0.0)  # vox_offset, scl_slope, scl_inter
    header[123] = 2  # millimetres
    struct.pack_into("<hh", header, 252, 0, 1)  # qform none, sform scanner
    struct.pack_into("<12f", header, 280, *affine_ras[:3].ravel())
    header[344:348] = b"n+1\0"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(header) + bytes(4) + np.ascontiguousarray(values, dtype=np.uint8).tobytes())


def scatter_junk(root: Path, files: Mapping[str, bytes] | None = None) -> int:
    """Files that are not DICOM, as lie around in any real folder. Returns how many."""
    junk = {
        "README.txt": b"not an image\n",
        "notes/.DS_Store": b"\0\0\0\1Bud1",
        "notes/empty": b"",
        "notes/picture.jpg": b"\xff\xd8\xff\xe0" + bytes(64),
        "table.csv": b"a,b\n1,2\n",
        "preamble_only": bytes(128) + b"DIC",
        **(files or {}),
    }
    for name, content in junk.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return len(junk)
