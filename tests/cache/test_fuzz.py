"""Damaged files: no crash, no hang, nothing written outside the cache, and a row for each series.

Copies of real series (synthetic ones where those are not at hand), each damaged at random from a seed, go
through the command line in one run. ANEURYSM_FUZZ_SEED shifts the seeds, to look for more.
"""

from __future__ import annotations

import csv
import json
import os
import random
import string
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from aneurysm.errors import Reason
from tests.cache.mutations import Files, mutate
from tests.support_run import (
    LABELS,
    UID_ROOT,
    attributes,
    environment,
    leftovers,
    manifest,
    real_data_root,
    run_cli,
    stored_voxels,
    tree_digest,
    unpack_real_series,
    write_series,
)

SEED = int(os.environ.get("ANEURYSM_FUZZ_SEED", "0"))
SECONDS_PER_SERIES = 20
MINI = "dicom2nifti-mini"

WATCH = """
import os, resource, sys

# An absurd size must be refused, not tried: 8 GB of addresses is ample for every honest series here.
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
log = os.open("{log}/" + str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
changing = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
}

def watch(event, args):
    if event == "open":
        name, _, flags = args
        if not isinstance(name, (str, bytes, os.PathLike)):
            return
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        names = [name]
    elif event in changing:
        names = [a for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
    else:
        return
    for name in names:
        os.write(log, os.fsencode(os.path.abspath(os.fsdecode(name)).replace("\\n", " ")) + b"\\n")

sys.addaudithook(watch)
"""


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """Small whole series and short pieces of larger ones, as bytes."""
    folder = tmp_path_factory.mktemp("sources")
    found: dict[str, Files] = {}
    for name, modality in (("synthetic CT", "CT"), ("synthetic MR", "MR")):
        write_series(folder / name, f"{UID_ROOT}.9.{len(name)}", shape=(6, 32, 32), modality=modality)
        found[name] = [p.read_bytes() for p in sorted((folder / name).iterdir())]
    if real_data_root() is None:
        return found
    unpack_real_series(MINI, folder / MINI)
    for leaf in sorted(p for p in (folder / MINI).rglob("*") if p.is_dir()):
        files = sorted(leaf.glob("*.dcm"))
        if files:
            found[leaf.relative_to(folder).as_posix()] = [p.read_bytes() for p in files]
    for name in (
        "ct-philips-tilt",
        "mr-pd-ge-jitter",
        "mr-philips-dual-echo",
        "mr-philips-enhanced",
        "mr-t1-xa30-jpegll-fragmented",
        "mr-t1post-siemens-oblique",
        "transfer-syntaxes-mosaic",
    ):
        files = sorted(p for p in unpack_real_series(name, folder / name).rglob("*") if p.is_file())
        files = [p for p in files if p.stat().st_size < 1_000_000 and p.name != "DIRFILE"]
        found[name] = [p.read_bytes() for p in files[:6]]
    return found


def run_watched(box: Path, timeout_s: float, workers: int = 2) -> tuple[dict[str, dict[str, str]], str]:
    """Precache box/data into box/cache under watch; return the manifest and what was printed."""
    for name in ("site", "log", "tmp", "cwd"):
        (box / name).mkdir()
    (box / "site" / "sitecustomize.py").write_text(WATCH.replace("{log}", str(box / "log")))
    data = tree_digest(box / "data")
    ran = run_cli(
        *("precache", "--data", box / "data", "--cache", box / "cache", "--workers", workers),
        timeout_s=timeout_s,
        cwd=box / "cwd",
        env=environment(first_path=box / "site", TMPDIR=str(box / "tmp"), PYTHONDONTWRITEBYTECODE="1"),
    )
    assert ran.code in (0, 8), ran.text[-5000:]
    assert "Traceback" not in ran.text, ran.text[-5000:]
    assert tree_digest(box / "data") == data, "the data folder was changed"
    assert sorted(p.name for p in box.iterdir()) == ["cache", "cwd", "data", "log", "site", "tmp"]
    assert list((box / "cwd").iterdir()) == []
    allowed = (f"{box}/cache", f"{box}/tmp", f"{box}/log", "/dev/", "/proc/")
    written = {line for log in (box / "log").iterdir() for line in log.read_text(errors="replace").splitlines()}
    assert written, "the watch saw nothing"
    assert {name for name in written if not name.startswith(allowed)} == set()
    assert leftovers(box / "cache") == []
    return manifest(box / "cache"), ran.text


def faults_of(cache: Path, uid: str, row: dict[str, str]) -> list[str]:
    """What is wrong with one row, or with the volume it speaks of."""
    faults = []
    if float(row["seconds"] or 0) > SECONDS_PER_SERIES:
        faults.append(f"took {row['seconds']} s")
    if row["status"] != "cached":
        if row["status"] not in ("rejected", "failed"):
            faults.append(f"status {row['status']!r}")
        # A worker that dies of a damaged file would have been the whole run, had there been one worker only.
        bugs = {Reason.INTERNAL_ERROR, Reason.WORKER_KILLED}
        if row["reason"] not in set(Reason) - bugs or not row["detail"]:
            faults.append(f"{row['reason']!r}: {row['detail']!r}")
        return faults
    facts, voxels = attributes(cache, uid), stored_voxels(cache, uid)
    text = (cache / "volumes" / f"{uid}.zarr" / "zarr.json").read_text()
    constants: list[str] = []
    json.loads(text, parse_constant=constants.append)
    if constants:
        faults.append(f"{constants} in the metadata, which is not JSON")
    affine = np.asarray(facts["affine_lps"], float)
    if not np.isfinite(affine).all() or abs(abs(np.linalg.det(affine[:3, :3])) - 1) > 1e-3:
        faults.append(f"affine {affine.tolist()}")
    if np.abs(affine[:3, 3]).max() > 1e5:
        faults.append(f"{np.abs(affine[:3, 3]).max():.3g} mm from the scanner's origin")
    if voxels.min() == voxels.max():
        faults.append(f"all voxels are {voxels.min()}")
    return faults


def fresh_uid(files: Files, old: bytes, number: int) -> tuple[Files, str]:
    """The same files under another SeriesInstanceUID of the same length, so that no length field changes."""
    tail = b"%08d" % number
    new = old[: -len(tail)].rstrip(b".") + b"1" * (len(old[: -len(tail)]) - len(old[: -len(tail)].rstrip(b"."))) + tail
    return [data.replace(old, new) for data in files], new.decode()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "seed, count",
    [
        pytest.param(1, 40, id="40 series"),
        *(pytest.param(100 + i, 90, id=f"90 series, seed {100 + i}", marks=pytest.mark.slow) for i in range(4)),
    ],
)
def test_damaged_series_in_the_rsna_layout(sources: dict[str, Files], tmp_path: Path, seed: int, count: int) -> None:
    """A folder is a series: each has exactly one row, whatever its files say."""
    rng = random.Random(seed + SEED)
    stories = {}
    for number in range(count):
        name, uid = rng.choice(sorted(sources)), f"{UID_ROOT}.{seed}.{number}"
        mutant = mutate(sources[name], rng)
        stories[uid] = f"#{number} {name}: {mutant.story}"
        folder = tmp_path / "box" / "data" / "series" / uid
        folder.mkdir(parents=True)
        for i, data in enumerate(mutant.files):
            (folder / f"{i}.dcm").write_bytes(data)
    rows, _ = run_watched(tmp_path / "box", timeout_s=60 + 3 * count)
    assert set(rows) == set(stories)
    check_rows(tmp_path / "box" / "cache", rows, stories)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "seed, count",
    [
        pytest.param(2, 15, id="15 series"),
        *(pytest.param(200 + i, 60, id=f"60 series, seed {200 + i}", marks=pytest.mark.slow) for i in range(2)),
    ],
)
def test_damaged_series_in_a_free_tree(sources: dict[str, Files], tmp_path: Path, seed: int, count: int) -> None:
    """The headers tell series apart: each of which one file is still sound has a row under its UID."""
    rng = random.Random(seed + SEED)
    stories = {}
    several = {name: files for name, files in sources.items() if len(files) > 1}
    for number in range(count):
        name = rng.choice(sorted(several))
        files = several[name]
        old = pydicom.dcmread(BytesIO(files[0]), stop_before_pixels=True).SeriesInstanceUID.encode()
        files, uid = fresh_uid(files, old, 1000 * seed + number)
        mutant = mutate(files, rng, keep_one=True)
        stories[uid] = f"#{number} {name}: {mutant.story}"
        folder = tmp_path / "box" / "data" / f"{number % 7}" / f"{number}"
        folder.mkdir(parents=True)
        for i, data in enumerate(mutant.files):
            (folder / f"IM{i}").write_bytes(data)
    rows, _ = run_watched(tmp_path / "box", timeout_s=60 + 3 * count)
    assert set(stories) <= set(rows), {uid: stories[uid] for uid in set(stories) - set(rows)}
    check_rows(tmp_path / "box" / "cache", rows, stories)


def check_rows(cache: Path, rows: dict[str, dict[str, str]], stories: dict[str, str]) -> None:
    """Print how the mutants ended, and fail with a line per fault."""
    ends: dict[str, int] = {}
    faults = []
    for uid, row in rows.items():
        end = row["reason"] or row["status"]
        ends[end] = ends.get(end, 0) + 1
        faults += [f"{stories.get(uid, 'a series split off by damage')}\n    {f}" for f in faults_of(cache, uid, row)]
    print(dict(sorted(ends.items(), key=lambda item: -item[1])))
    assert not faults, "\n" + "\n".join(faults)


def _bits_allocated_32(data: bytes) -> bytes:
    """Explicit little endian, (0028,0100) US of 2 bytes."""
    return data.replace(b"\x28\x00\x00\x01US\x02\x00\x10\x00", b"\x28\x00\x00\x01US\x02\x00\x20\x00")


def _rows_512(data: bytes) -> bytes:
    return data.replace(b"\x28\x00\x10\x00US\x02\x00\x00\x01", b"\x28\x00\x10\x00US\x02\x00\x00\x02")


def _columns_257(data: bytes) -> bytes:
    return data.replace(b"\x28\x00\x11\x00US\x02\x00\x00\x01", b"\x28\x00\x11\x00US\x02\x00\x01\x01")


def _precision_20(data: bytes) -> bytes:
    """One bit of the frame header (SOF3) in a JPEG lossless stream: 16 bits a sample become 20, which no JPEG has."""
    at = data.index(b"\xff\xc3\x00\x0b") + 4
    return data[:at] + b"\x14" + data[at + 1 :]


@pytest.mark.skipif(real_data_root() is None, reason="no real series: set ANEURYSM_REAL_DATA")
@pytest.mark.parametrize("workers", [1, 2], ids=["one worker", "two workers"])
def test_a_decoder_that_aborts_costs_one_series(sources: dict[str, Files], tmp_path: Path, workers: int) -> None:
    """Damage that makes decoders in C++ abort the process or touch memory that isn't theirs."""
    cases = {
        f"{UID_ROOT}.6.1": ("compressed_jpeg/001", _bits_allocated_32),
        f"{UID_ROOT}.6.2": ("compressed_jpeg/001", _precision_20),
        f"{UID_ROOT}.6.3": ("compressed_jpegls/001", _rows_512),
        f"{UID_ROOT}.6.4": ("compressed_jpegls/001", _columns_257),
    }
    series = tmp_path / "box" / "data" / "series"
    for uid, (name, damage) in cases.items():
        (series / uid).mkdir(parents=True)
        for i, data in enumerate(sources[f"{MINI}/generic/{name}"]):
            assert damage(data) != data
            (series / uid / f"{i}.dcm").write_bytes(damage(data))
    sound = f"{UID_ROOT}.6.5"
    write_series(series / sound, sound, shape=(4, 32, 32))
    rows, _ = run_watched(tmp_path / "box", timeout_s=120, workers=workers)
    assert set(rows) == {*cases, sound}
    assert rows[sound]["status"] == "cached"
    check_rows(tmp_path / "box" / "cache", rows, {uid: str(case) for uid, case in cases.items()})


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
            for path in (box / "cache" / folder).iterdir():
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
