"""Damaged files: no crash, no hang, nothing written outside the cache, and a row for each series.

Copies of real series (synthetic ones where those are not at hand), each damaged at random from a seed, go
through the command line in one run. ANEURYSM_FUZZ_SEED shifts the seeds, to look for more.
"""

from __future__ import annotations

import os
import random
from io import BytesIO
from pathlib import Path

import pydicom
import pytest

from benchmarks.mutants import Files, mutate
from tests.support.run_data import UID_ROOT, real_data_root, unpack_real_series, write_series
from tests.support.watched import check_rows, run_watched

SEED = int(os.environ.get("ANEURYSM_FUZZ_SEED", "0"))
MINI = "dicom2nifti-mini"


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
