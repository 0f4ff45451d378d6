"""Names that are paths, code or nonsense, in headers, folders and tables: none gets out of the cache or stops a run."""

from __future__ import annotations

import csv
import os
import string
from pathlib import Path

import numpy as np
import pydicom

from aneurysm.errors import Reason
from tests.support.cache_state import attributes
from tests.support.run_data import LABELS, UID_ROOT, write_series
from tests.support.watched import run_watched

EVIL_UIDS = (
    "../../evil",
    "/{box}/evil",
    "..",
    ".",
    "a/../../../evil",
    "1.2.840\0.1",
    "9" * 300,
    "",
    " ",
    "CON",
    "1.2.3;rm -rf",
    "1.2\n3",
    "%2e%2e%2fevil",
    "..\\..\\evil",
    "é.1.2",
    "~root",
    "-rf",
    ".zarr",
    "zarr.json",
)


def test_evil_uids_in_headers(tmp_path: Path) -> None:
    """A UID becomes a folder name only where it is a UID; every sound file still ends in some row."""
    box, source = tmp_path / "box", tmp_path / "source"
    placeholder = "1.2.3.4.5.6.7.8.9"
    write_series(source, placeholder, shape=(4, 32, 32))
    for number, text in enumerate(EVIL_UIDS):
        uid = text.replace("{box}", str(box).lstrip("/"))
        (box / "data" / f"study-{number}").mkdir(parents=True)
        with pydicom.config.disable_value_validation():
            for path in sorted(source.iterdir()):
                ds = pydicom.dcmread(path)
                ds.SeriesInstanceUID = uid
                ds.SOPInstanceUID = f"{uid}.{path.stem}"
                ds.save_as(box / "data" / f"study-{number}" / path.name)
    rows, _ = run_watched(box, timeout_s=90, workers=1)
    assert rows, "nothing in the manifest"
    assert all(r["status"] == "cached" or r["reason"] == Reason.INVALID_UID for r in rows.values()), rows
    safe = set(string.ascii_letters + string.digits + ".-_")
    for folder in ("volumes", "rejected"):
        if (box / "cache" / folder).exists():
            for path in (box / "cache" / folder).glob("*/*"):
                assert set(path.name) <= safe, path.name
                assert not path.name.startswith(".."), path.name


def test_evil_folder_names_in_the_rsna_layout(tmp_path: Path) -> None:
    box = tmp_path / "box"
    names = [
        b"..evil",
        b" ",
        b"-rf",
        b"a b",
        b"\xff\xfe",
        b"new\nline",
        b"x" * 200,
        b"1.2.3",
        b"caf\xc3\xa9",
        b".hidden",
    ]
    for number, name in enumerate(names):
        folder = box / "data" / "series" / os.fsdecode(name)
        write_series(folder, f"{UID_ROOT}.8.{number}", shape=(4, 32, 32))
    rows, _ = run_watched(box, timeout_s=90, workers=1)
    assert rows["1.2.3"]["status"] == "cached"
    assert all(r["status"] == "cached" or r["reason"] == Reason.INVALID_UID for r in rows.values()), rows


COORDINATES = (
    "{'x': 10.5, 'y': 12.25}",
    "{'x': 1e99, 'y': 1}",
    "{'x': -5, 'y': 1}",
    "{'x': 'a', 'y': None}",
    "{'x': float('nan'), 'y': 1}",
    "{'x': nan, 'y': 1}",
    "{'y': 1}",
    "[1, 2]",
    "1",
    "",
    "{",
    "{'x': 1, 'y': 2, 'f': 7}",
    "{'x': 1, 'y': 2, 'f': -1}",
    "{'x': 1, 'y': 2, 'f': 'three'}",
    "__import__('pathlib').Path('evil').touch()",
    "{'x': " * 200,
    "{'x': 1" + "0" * 400 + ", 'y': 1}",
)


def test_damaged_localizers(tmp_path: Path) -> None:
    """Every row of the table is placed or listed with a reason; none of them stops a run."""
    box = tmp_path / "box"
    uid = f"{UID_ROOT}.5"
    instances = write_series(box / "data" / "series" / uid, uid, shape=(6, 32, 32))
    with (box / "data" / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS])
        table.writerow([uid, "", "?", "CTA", *([0] * 12), 1, 1])
        table.writerow(["../../evil", "x", "x", "CTA", *([1] * 14)])
    with (box / "data" / "train_localizers.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location"])
        for text in COORDINATES:
            table.writerow([uid, instances[2], text, "Other Posterior Circulation"])
        table.writerow([uid, "1.2.3.not.there", COORDINATES[0], "Basilar Tip"])
        table.writerow([uid, "../../evil", COORDINATES[0], "Basilar Tip"])
        table.writerow([uid, instances[2], COORDINATES[0], "Left Foot"])
        table.writerow(["../../evil", instances[2], COORDINATES[0], "Basilar Tip"])
    rows, _ = run_watched(box, timeout_s=60, workers=1)
    assert rows[uid]["status"] == "cached", rows
    facts = attributes(box / "cache", uid)
    placed, unplaced = facts["lesions"], facts["unplaced_lesions"]
    assert np.isfinite([lesion["zyx"] for lesion in placed]).all()
    assert len(placed) + len(unplaced) == len(COORDINATES) + 3
    assert 1 <= len(placed) <= 4, placed
    assert all(lesion["reason"] for lesion in unplaced)
