"""Corrections of tables and masks, as people make them, in a data folder that `write_rsna_data` wrote."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.support.run_data import write_vessel_mask

GRID = (12, 64, 64)


def edit_table(path: Path, edit: Callable[[list[dict[str, str]]], object]) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    edit(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def edit_train(data: Path, uid: str, **cells: str) -> None:
    edit_table(data / "train.csv", lambda rows: next(r for r in rows if r["SeriesInstanceUID"] == uid).update(cells))


def edit_localizer(data: Path, row: int, **cells: str) -> None:
    edit_table(data / "train_localizers.csv", lambda rows: rows[row].update(cells))


def mask_file(data: Path, uid: str) -> Path:
    return data / "segmentations" / f"{uid}_cowseg.nii"


def turn_mask(data: Path, uid: str) -> None:
    """Another mask of the same size in bytes: the vessels elsewhere."""
    path = mask_file(data, uid)
    size = path.stat().st_size
    image = sitk.ReadImage(str(path))
    turned = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(image), 9, axis=1))
    turned.CopyInformation(image)
    sitk.WriteImage(turned, str(path))
    assert path.stat().st_size == size


def two_labels(data: Path, uids: list[str]) -> None:
    edit_train(data, uids[1], **{"Basilar Tip": "1", "Aneurysm Present": "1"})
    edit_train(data, uids[0], **{"Basilar Tip": "0", "Left Middle Cerebral Artery": "1"})


def lose_row_of_train(data: Path, uids: list[str]) -> None:
    edit_table(data / "train.csv", lambda rows: rows.pop(2))


def to_another_image(data: Path, uids: list[str]) -> None:
    edit_localizer(data, 0, SOPInstanceUID=f"{uids[0]}.3", coordinates="{'x': 20.5, 'y': 31.0}")


def to_no_image(data: Path, uids: list[str]) -> None:
    edit_localizer(data, 0, SOPInstanceUID="1.2.3")


def another_lesion(data: Path, uids: list[str]) -> None:
    with (data / "train_localizers.csv").open("a") as file:
        file.write(f"{uids[1]},{uids[1]}.5,\"{{'x': 30, 'y': 33}}\",Basilar Tip\n")


def first_lesion_gone(data: Path, uids: list[str]) -> None:
    edit_table(data / "train_localizers.csv", lambda rows: rows.pop(0))


CORRECTIONS: dict[str, tuple[Callable[[Path, list[str]], object], dict[str, int], int]] = {
    "labels": (two_labels, {"labels": 2}, 2),
    "a row of train.csv is lost": (lose_row_of_train, {"labels": 1, "modality": 1}, 1),
    "modality": (lambda d, u: edit_train(d, u[2], Modality="MRI T2"), {"modality": 1}, 1),
    "a lesion in another image": (to_another_image, {"lesions": 1}, 1),
    "a lesion in no image": (to_no_image, {"lesions": 1}, 1),
    "one lesion more": (another_lesion, {"lesions": 1}, 1),
    # The other lesion's line is another one now.
    "one lesion fewer": (first_lesion_gone, {"lesions": 1, "rows": 1}, 2),
    "another mask": (lambda d, u: turn_mask(d, u[0]), {"vessels": 1}, 1),
    "one mask more": (lambda d, u: write_vessel_mask(d, u[2], shape=(14, 64, 64)), {"vessels": 1}, 1),
    "no mask any more": (lambda d, u: mask_file(d, u[0]).unlink(), {"vessels": 1}, 1),
    "a mask that is none": (lambda d, u: mask_file(d, u[0]).write_bytes(b"no NIfTI"), {"vessels": 1}, 1),
    "a mask that is none where there was none": (
        lambda d, u: mask_file(d, u[1]).write_bytes(b"no NIfTI"), {"vessels": 1}, 1,
    ),
    "all at once": (
        lambda d, u: [two_labels(d, u), another_lesion(d, u), turn_mask(d, u[0]), edit_train(d, u[0], Modality="MRA")],
        {"labels": 2, "lesions": 1, "vessels": 1, "modality": 1}, 2,
    ),
}  # fmt: skip
