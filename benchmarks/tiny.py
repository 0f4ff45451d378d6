"""Many tiny series and their volumes, quickly: a few are made by the real code, the others are copies under other UIDs.

All UIDs have one length, so that a DICOM file of another series is the same bytes with another UID in them. A copied
volume has its own metadata and the hashes that belong to them: `aneurysm verify` finds nothing amiss.
"""

from __future__ import annotations

import io
import json
import os
import struct
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from aneurysm.annotations.frames import pack_frames, sop_key, unpack_frames
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.metadata import read_document
from aneurysm.labels import LABELS

_ROOT = "1.2.826.0.1.3680043.8.498.1000404442802350510837515"
"""With the number as long as UIDs of the RSNA set are: they take most of the memory."""
_FIRST = 1_000_000
"""Numbers of equal length: a component of a UID may not begin with a zero."""
_PART = 1000
SLICES = 10


def series_uid(number: int) -> str:
    """Return the UID of the series of this number."""
    return f"{_ROOT}.{_FIRST + number}"


def write_tiny_data(root: Path, series: int, slices: int = SLICES, size: int = 8) -> Path:
    """Write ``series`` series of ``slices`` files in the RSNA layout, with train.csv, and return the folder."""
    templates = [_template(k, slices, size) for k in range(slices)]
    (root / "series").mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        parts = [range(i, min(i + _PART, series)) for i in range(0, series, _PART)]
        list(pool.map(partial(_write_part, root, templates=templates, size=size), parts))
    header = ",".join(["SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS])
    zeros = ",".join("0" * len(LABELS))
    rows = [f"{series_uid(i)},60,Female,CTA,{zeros}" for i in range(series)]
    (root / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def _write_part(root: Path, numbers: range, templates: list[bytes], size: int) -> None:
    pixels = 2 * size * size  # bytes, at the end of a file
    for number in numbers:
        uid = series_uid(number).encode()
        folder = f"{root}/series/{uid.decode()}"
        os.mkdir(folder)  # noqa: PTH102 - a million of them: Path objects would take most of the time
        for k, template in enumerate(templates):
            with open(f"{folder}/{uid.decode()}.{100 + k}.dcm", "wb") as file:  # noqa: PTH123
                # The first pixel, in the air, tells one series from another: mixed up volumes would show.
                content = template.replace(series_uid(0).encode(), uid)
                file.write(content[:-pixels] + struct.pack("<H", (number * 7 + k) % 997) + content[2 - pixels :])


def _template(k: int, slices: int, size: int) -> bytes:
    """Return slice ``k`` of series 0: a ball of tissue in air, in pixels of 3 mm and slices of 2 mm."""
    z = (k + 0.5) / slices * 2 - 1
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    noise = np.random.default_rng(k).normal(0, 10, (size, size))
    pixels = np.rint(np.where(x**2 + y**2 + z**2 < 0.9, 1060, 24) + noise).clip(0, 4095).astype(np.uint16)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
    ds.SeriesInstanceUID = series_uid(0)
    ds.SOPInstanceUID = f"{series_uid(0)}.{100 + k}"
    ds.StudyInstanceUID = ds.PatientID = series_uid(0)
    ds.ImagePositionPatient = [0, 0, 2 * k]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [3, 3]
    ds.RescaleIntercept, ds.RescaleSlope = -1024, 1
    ds.set_pixel_data(pixels, "MONOCHROME2", 12)
    content = io.BytesIO()
    ds.save_as(content, enforce_file_format=True)
    return content.getvalue()


def clone_volume(cache: Path, numbers: range) -> None:
    """Give ``cache``, which holds the volume of series 0, those of ``numbers`` as well."""
    with ProcessPoolExecutor() as pool:
        parts = [range(i, min(i + _PART, numbers.stop)) for i in range(numbers.start, numbers.stop, _PART)]
        list(pool.map(partial(_clone_part, cache), parts))


def _clone_part(cache: Path, numbers: range) -> None:
    layout = CacheLayout(cache)
    original = layout.volume(series_uid(0))
    document = read_document(original)
    others = {
        p.relative_to(original): p.read_bytes() for p in original.rglob("*") if p.is_file() and p.parent != original
    }
    assert document.own.images is not None
    frames = unpack_frames(document.own.images)
    for number in numbers:
        uid = series_uid(number)
        folder = layout.volume(uid)
        for name, content in others.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        sops = [sop_key(f"{uid}.{100 + k}") for k in range(len(frames))]
        images = pack_frames([replace(f, sop=sop) for f, sop in zip(frames, sops, strict=True)])
        copy = document.with_changes(series_uid=uid, images=images).sealed(folder)
        (folder / "zarr.json").write_bytes(copy.to_bytes())


def write_ledgers(cache: Path, run: str, series: int, tasks: int = 64) -> None:
    """Write the ledgers that a run of ``tasks`` leaves of so many series, one in a hundred of which fails."""
    folder = CacheLayout(cache).runs / run
    folder.mkdir(parents=True)
    for task in range(tasks):
        mine = range(task, series, tasks)
        host = f"node{task % 16:03}"
        opened = {"ledger": 1, "run": run, "host": host, "pid": 1, "task": f"{task}/{tasks}", "role": "run"}
        lines = [{"event": "opened"} | opened, {"event": "run_started", "series": series, "todo": len(mine)}]
        for i in mine:
            lines.append({"event": "series_started", "series": series_uid(i), "bytes": 7 * 10**7, "expected_s": 3.5})
            if i % 100:
                done = {"seconds": 3.25 + i % 7, "bytes_in": 7 * 10**7, "bytes_out": 9 * 10**6, "frames": 188}
                done |= {"event": "cached", "voxels": 188 * 512 * 512, "syntax": "1.2.840.10008.1.2.4.90"}
            else:
                done = {"event": "failed", "reason": "read_error", "seconds": 1.0}
            lines.append(done | {"series": series_uid(i)})
        lines.append({"event": "run_ended", "how": "done"})
        with (folder / f"{host}~1~{task:08x}.jsonl").open("w") as file:
            for number, line in enumerate(lines):
                file.write(json.dumps({"time": 1.7e9 + 2.0 * number} | line, separators=(",", ":")) + "\n")
