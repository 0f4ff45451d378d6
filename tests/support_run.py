"""Small synthetic data sets, and helpers that run the command line and read what it left on disk.

The tests of a whole run see the program from outside: DICOM in, exit code and files out. Nothing here uses a function
of `aneurysm`, so that a fault in the program can't hide in the helper that looks for it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

ROOT = Path(__file__).resolve().parents[1]
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


# Data -----------------------------------------------------------------------------------------------------


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


# Running --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a finished command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams, for messages that may stand on either."""
        return self.out + self.err


def environment(*, first_path: Path | None = None, **extra: str) -> dict[str, str]:
    """The environment of a child: this checkout importable, wide lines, no folders preset.

    A ``sitecustomize.py`` in `first_path` runs at the start of every Python process of the child's family.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("ANEURYSM_DATA", "ANEURYSM_CACHE")}
    env["PYTHONPATH"] = os.pathsep.join(str(p) for p in (first_path, ROOT) if p is not None)
    env["PYTHONUNBUFFERED"] = "1"
    env["ANEURYSM_PATIENT_KEY"] = "the same in every cache, else no two could have the same bytes"
    env["COLUMNS"] = "300"  # so that no message is wrapped
    return env | extra


def command(*args: object) -> list[str]:
    """The command line, started with this interpreter."""
    return [sys.executable, "-m", "cli.main", *map(str, args)]


def run_cli(*args: object, timeout_s: float = 120, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ran:
    """Run a command to its end; kill its whole process group when it takes too long."""
    process = start_cli(*args, cwd=cwd, env=env)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_group(process)
        out, err = process.communicate()
        raise AssertionError(f"no end after {timeout_s} s: {args}\n{out[-3000:]}\n{err[-3000:]}") from None
    return Ran(process.returncode, out, err)


def call_cli(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ran:
    """Run a command to its end in this process: the second that a new one takes to import everything is saved.

    An exception that would show as a traceback comes out of here as it is.
    """
    from cli.main import main

    out, err = StringIO(), StringIO()
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.dict(os.environ, env or environment(), clear=True),
            mock.patch.object(sys, "argv", ["aneurysm", *map(str, args)]),
            chdir(cwd or Path.cwd()),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        signal.signal(signal.SIGTERM, terminated)
    return Ran(code, out.getvalue(), err.getvalue())


def start_cli(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command in a session, and so a process group, of its own; `end_all` makes sure that it ends."""
    process = subprocess.Popen(
        command(*args),
        cwd=cwd or ROOT,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_let_sigint_through,
    )
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []


def end_all() -> None:
    """Kill whatever `start_cli` started and a failed test left running."""
    while _started:
        process = _started.pop()
        kill_group(process)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _let_sigint_through() -> None:
    """A test run in the background of a shell inherits SIGINT ignored, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the command and to everything it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def group_members(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The living processes of the command's group."""
    found = []
    for other in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
    return found


# Reading the cache from outside ------------------------------------------------------------------------


def manifest(cache: Path) -> dict[str, dict[str, str]]:
    """manifest.csv as text, by series; asserts that no series has two rows."""
    with (cache / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_uid = {row["series_uid"]: row for row in rows}
    assert len(by_uid) == len(rows), "a series stands twice in the manifest"
    return by_uid


def attributes(cache: Path, uid: str) -> dict[str, Any]:
    """The `aneurysm` attribute of a cached volume, read as plain JSON."""
    text = (cache / "volumes" / f"{uid}.zarr" / "zarr.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)["attributes"]["aneurysm"]
    return found


def stored_voxels(cache: Path, uid: str) -> np.ndarray:
    """Array `0` of a cached volume."""
    import zarr

    group = zarr.open_group(cache / "volumes" / f"{uid}.zarr", mode="r")
    return np.asarray(group["0"][...])


def tree_digest(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256, for every file below `folder`; empty folders as ``path/`` -> ``""``."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            digests[name + "/"] = ""
    return digests


def leftovers(cache: Path) -> list[str]:
    """Everything under CACHE that a finished run should not leave."""
    known = {"spec.toml", "manifest.csv", "volumes", "rejected", ".building", "lesions.csv", ".patient-key"}
    left = [p.name for p in cache.iterdir() if p.name not in known]
    building = cache / ".building"
    if building.exists():
        left += [p.relative_to(cache).as_posix() for p in building.rglob("*")]
    volumes = cache / "volumes"
    if volumes.exists():
        left += [p.relative_to(cache).as_posix() for p in volumes.iterdir() if not p.name.endswith(".zarr")]
    if (cache / "rejected").exists():
        left += [p.relative_to(cache).as_posix() for p in (cache / "rejected").glob("*") if p.suffix != ".json"]
    return left


def same_cache(cache: Path, reference: Path) -> list[str]:
    """Differences between two caches: bytes of every volume, every manifest column but the time it took."""
    differences = []
    ours, theirs = tree_digest(cache / "volumes"), tree_digest(reference / "volumes")
    differences += [f"only here: {name}" for name in sorted(ours.keys() - theirs.keys())]
    differences += [f"missing: {name}" for name in sorted(theirs.keys() - ours.keys())]
    differences += [f"other bytes: {n}" for n in sorted(ours.keys() & theirs.keys()) if ours[n] != theirs[n]]
    rows, expected = manifest(cache), manifest(reference)
    if list(rows) != list(expected):
        differences.append(f"manifest rows: {list(rows)} instead of {list(expected)}")
    for uid in rows.keys() & expected.keys():
        for column in expected[uid]:
            if column != "seconds" and rows[uid][column] != expected[uid][column]:
                differences.append(f"{uid} {column}: {rows[uid][column]!r} instead of {expected[uid][column]!r}")
    return differences
