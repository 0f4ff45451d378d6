"""
Whatever may identify a patient, in tags, names and tables, is a marker, and no marker comes out again.

A data set is built twice, as the RSNA layout and as a tree, in which every text, date, time and age of the DICOM
dictionary is a unique marker, also in private tags, sequences and functional groups, and so are the names of files and
folders. What all commands write and say is searched for them, unpacked where it is packed.
"""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import io
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from tests.support.acquisition import acquire
from tests.support.cache_paths import volume_paths
from tests.support.command import Ran, environment, run_cli
from tests.support.pattern import lone_blob
from tests.support.run_data import write_rsna_data, write_vessel_mask
from tests.support.series import write_multiframe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore:Invalid value for VR")]

TEXTS = {"PN", "LO", "SH", "LT", "ST", "UT", "UC", "AE"}
NOT_A_PATIENTS = {
    # The scanner, which is kept; and what says how pixels and text are to be read.
    "Manufacturer", "ManufacturerModelName", "RescaleType", "TimezoneOffsetFromUTC",
}  # fmt: skip


class Markers:
    """Makes unique strings, and knows them."""

    def __init__(self) -> None:
        self.known: dict[bytes, str] = {}
        self._day = dt.date(1891, 3, 7)

    def text(self, what: str) -> str:
        marker = f"Zq{len(self.known):04d}xK"
        self.known[marker.lower().encode()] = what
        return marker

    def date(self, what: str) -> str:
        self._day += dt.timedelta(3)
        assert self._day.year < 2000, "`found_in` looks for days of these two centuries"
        self.known[self._day.strftime("%Y%m%d").encode()] = what
        return self._day.strftime("%Y%m%d")

    def found_in(self, content: bytes) -> set[str]:
        """What of the marked things stands in some bytes; digits by themselves only, and not within other numbers."""
        content = content.lower()
        found = {self.known[marker] for marker in set(re.findall(rb"zq\d{4,}xk", content)) if marker in self.known}
        # Both begin with a byte that is rare, so that the search is fast: there are gigabytes of voxels and weights.
        runs = set(re.findall(rb"1(?<![\d.]1)[89]\d{6}(?![\d.])", content))
        runs |= set(re.findall(rb"1[89]\d\d-\d\d-\d\d", content))
        dates = {run.replace(b"-", b"") for run in runs}
        return found | {self.known[d] for d in dates if d in self.known}


def mark(dataset: Dataset, markers: dict[str, str], private: str) -> None:
    """Set all elements of the dictionary that hold text, dates or ages, and some that are in none."""
    for keyword, value in markers.items():
        if keyword not in dataset or dataset[keyword].VR in TEXTS:
            setattr(dataset, keyword, value)
    block = dataset.private_block(0x0011, private, create=True)
    block.add_new(0x01, "LO", private)
    block.add_new(0x02, "OB", private.encode())
    inner = Dataset()
    inner.PatientName = private
    block.add_new(0x03, "SQ", Sequence([inner]))
    block.add_new(0x04, "UN", private.encode() * 2)


def standard(markers: Markers) -> dict[str, str]:
    """A marker for each element of DICOM's dictionary; those of dates and times for the best known."""
    found = {}
    for tag, (vr, *_, keyword) in DicomDictionary.items():
        if vr in TEXTS and keyword and keyword not in NOT_A_PATIENTS and Tag(tag).group not in (0x0000, 0x0002, 0x0004):
            found[keyword] = markers.text(keyword)
    for keyword in (
        "PatientBirthDate",
        "StudyDate",
        "SeriesDate",
        "AcquisitionDate",
        "ContentDate",
        "InstanceCreationDate",
    ):
        found[keyword] = markers.date(keyword)
    found["AcquisitionDateTime"] = markers.date("AcquisitionDateTime") + "101112.345"
    found["PatientBirthTime"] = markers.text("PatientBirthTime")  # what is no time, as scanners write now and then
    found["PatientAge"] = markers.text("PatientAge")
    found["StudyInstanceUID"] = "1.3.6.1.4." + markers.date("StudyInstanceUID")
    return found


def items(standard_markers: dict[str, str]) -> Sequence:
    one = Dataset()
    for keyword in (
        "PatientID",
        "ReferringPhysicianName",
        "AccessionNumber",
        "RequestedProcedureDescription",
        "ImageComments",
    ):
        setattr(one, keyword, standard_markers[keyword])
    one.StudyDate = standard_markers["StudyDate"]
    return Sequence([one])


class Data:
    """The data set in two layouts, and its markers."""

    def __init__(self, root: Path) -> None:
        self.markers = Markers()
        self.rsna, self.tree = root / "rsna", root / "tree"
        text = self.markers.text
        shared = standard(self.markers)
        uids = write_rsna_data(self.rsna, n_series=8, shape=(20, 64, 64))
        write_vessel_mask(self.rsna, uids[0], shape=(20, 64, 64))
        self._mark_mask(next((self.rsna / "segmentations").iterdir()))
        for number, uid in enumerate(uids):
            self._mark_series(self.rsna / "series" / uid, shared, f"{text('PatientID of a patient')}-{number // 2}")
        self._trouble(self.rsna / "series", uids, shared)
        table = (self.rsna / "train.csv").read_text().splitlines()
        (self.rsna / "train.csv").write_text(
            "\n".join([f"{table[0]},PatientName", *(f"{row},{text('a column of train.csv')}" for row in table[1:])])
        )
        # The same files as people keep them, a folder for each patient.
        for number, folder in enumerate(sorted(p for p in (self.rsna / "series").iterdir() if p.is_dir())):
            copy = self.tree / f"{text('folder of a patient')}^{number}" / text("folder of a series")
            shutil.copytree(folder, copy, symlinks=True)
        (self.tree / f"{text('name of a text file')}.txt").write_text(text("content of a text file"))
        (self.tree / text("empty folder")).mkdir()
        self.empty = self.tree / text("folder without images")
        self.empty.mkdir()
        (self.empty / f"{text('name of a report')}.pdf").write_bytes(b"%PDF")

    def _mark_series(self, folder: Path, shared: dict[str, str], patient: str) -> None:
        for number, path in enumerate(sorted(folder.iterdir())):
            dataset = pydicom.dcmread(path)
            self._mark(dataset, shared, patient)
            path.unlink()
            dataset.save_as(folder / f"{self.markers.text('name of a file')}-{number}.dcm", enforce_file_format=True)

    def _mark(self, dataset: Dataset, shared: dict[str, str], patient: str) -> None:
        mark(dataset, shared, self.markers.text("private tag"))
        dataset.PatientID = patient
        dataset.RequestAttributesSequence = dataset.ReferencedStudySequence = items(shared)
        dataset.preamble = self.markers.text("preamble").encode().ljust(128, b"\0")
        dataset.file_meta.SourceApplicationEntityTitle = self.markers.text("SourceApplicationEntityTitle")

    def _mark_mask(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        for at, length in ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16)):  # the texts of a NIfTI header
            content[at : at + length] = (
                self.markers.text("text of a mask's header").encode()[:length].ljust(length, b"\0")
            )
        path.write_bytes(content)

    def _trouble(self, series: Path, uids: list[str], shared: dict[str, str]) -> None:
        """Series that are multi-frame, rejected, failing, or in folders that bear no UID."""
        text = self.markers.text
        acquisition = acquire("axial", slices=20)
        for kind in ("enhanced", "malformed"):
            uid, blob = f"1.2.{len(kind)}.77", lone_blob(acquisition.lps(9, 9, 9))
            made = write_multiframe(series / uid, acquisition, blob, uid=uid, edit_frame=self._mark_frame)
            dataset = pydicom.dcmread(made.paths[0])
            self._mark(dataset, shared, text("PatientID"))
            dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = items(shared)
            if kind == "malformed":
                del dataset.PerFrameFunctionalGroupsSequence
                dataset.NumberOfFrames = 3
            made.paths[0].unlink()
            dataset.save_as(series / uid / f"{text('name of a file')}.dcm", enforce_file_format=True)
        source = series / uids[0]

        def copy(name: str, n: int) -> list[Path]:
            (series / name).mkdir()
            kept = []
            for number, path in enumerate(sorted(source.iterdir())[:n]):
                dataset = pydicom.dcmread(path)
                dataset.SeriesInstanceUID = f"1.2.99.{len(list(series.iterdir()))}"
                kept.append(series / name / f"{text('name of a file')}-{number}.dcm")
                dataset.save_as(kept[-1], enforce_file_format=True)
            return kept

        copy("1.2.99.1", 2)  # too few slices
        copy(f"{text('folder of a series')}^Given", 20)
        for path in copy("1.2.99.3", 20):  # cut short amid the pixels
            path.write_bytes(path.read_bytes()[:-4000])
        for path in copy("1.2.99.4", 20):
            dataset = pydicom.dcmread(path)
            dataset.PhotometricInterpretation = "PALETTE COLOR"
            dataset.save_as(path, enforce_file_format=True)
        for path in copy("1.2.99.5", 12):  # no DICOM at all
            path.write_bytes(text("content of a file").encode() * 100)
        for path in copy("1.2.99.6", 12):  # positions that are words
            content = path.read_bytes()
            path.write_bytes(content.replace(b"-100.0\\-90.0", text("a position").encode().ljust(12)))
        for number, path in enumerate(copy("1.2.99.7", 12)):
            if number % 3 == 0:
                path.unlink()
                path.symlink_to(f"/nowhere/{text('target of a link')}")
        (series / "1.2.99.8").mkdir()
        (series / f"{text('loose file')}.dcm").write_bytes(b"x")

    def _mark_frame(self, frame: Dataset, _index: int) -> None:
        frame.FrameContentSequence[0].FrameComments = self.markers.text("FrameComments")
        frame.FrameContentSequence[0].FrameReferenceDateTime = self.markers.date("FrameReferenceDateTime") + "101112"


def unpacked(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """A file's bytes, and those of all that is packed in it."""
    yield name, content
    if content[:2] == b"\x1f\x8b":
        yield f"{name} (gzip)", gzip.decompress(content)
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                yield from unpacked(f"{name}/{member}", archive.read(member))
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        at = 8
        while at < len(content):
            length = int.from_bytes(content[at : at + 4], "big")
            kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
            if kind in (b"zTXt", b"iTXt"):
                yield f"{name} ({kind!r})", zlib.decompress(data.partition(b"\0\0")[2])
            at += length + 12
    for number, inside in enumerate(re.findall(rb"base64,([A-Za-z0-9+/=]{40,})", content)):
        yield from unpacked(f"{name} (inline {number})", base64.b64decode(inside))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("marked"))


@pytest.fixture(scope="module")
def told(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Ran]]:
    """All that the commands write below a folder, and all that they say."""
    out = tmp_path_factory.mktemp("out")
    said: dict[str, Ran] = {}

    def run(title: str, *command: object, codes: tuple[int, ...] = (0,)) -> Ran:
        ran = run_cli(*command, timeout_s=300, env=environment(TMPDIR=str(out), ANEURYSM_PATIENT_KEY="key"))
        said[title] = ran
        assert ran.code in codes, (title, ran.text[-3000:])
        assert "Traceback" not in ran.text, (title, ran.text)
        return ran

    for layout in ("rsna", "tree"):
        cache, source = out / f"cache-{layout}", getattr(data, layout)
        given = ("--data", source, "--cache", cache, "--timeout-s", 60)
        run(f"doctor {layout}", "doctor", "--data", source, "--cache", cache, "--workers", 1)
        run(f"precache {layout}", "precache", *given, "--workers", 2, codes=(8,))
        run(f"precache {layout}, again", "precache", *given, "--workers", 1, "--retry-failed", codes=(8,))
        run(f"manifest {layout}", "manifest", "--data", source, "--cache", cache, codes=(0, 8))
        run(f"verify {layout}", "verify", "--deep", "--cache", cache)
        page, metrics = out / f"run-{layout}.html", out / f"{layout}.prom"
        run(f"status {layout}", "status", "--cache", cache, "--report", page, "--metrics", metrics, codes=(8,))
        run(f"status {layout}, JSON", "status", "--json", "--cache", cache, codes=(8,))
        run(f"info {layout}", "info", "--cache", cache)
        run(f"eda {layout}", "eda", *given, "--out", out / f"eda-{layout}", "--workers", 1)
        uid = volume_paths(cache)[0].stem
        run(f"info {layout}, one", "info", uid, "--cache", cache, "--png", out / f"{layout}.png")
        run(f"info {layout}, JSON", "info", uid, "--json", "--cache", cache)
    # A plan names files of the data, as its page says, and so lies elsewhere; what is said and built by it does not.
    plan = tmp_path_factory.mktemp("plan") / "plan"
    planned = ("--data", data.tree, "--cache", out / "cache-planned")
    run("plan", "plan", *planned, "--shards", 1, "--out", plan)
    run("task of a plan", "precache", "--plan", plan, "--shard", 0, "--timeout-s", 60, "--workers", 2, codes=(8,))
    config = out / "config.toml"
    config.write_text(
        "model = 'tests.support.tiny:mapper'\npatch = [32, 32, 32]\nbatch_size = 4\nepochs = 2\nworkers = 1\n"
        "steps_per_epoch = 3\nfolds = 2\ndevices = 1\n"
    )
    cache, ckpt = out / "cache-rsna", out / "run" / "checkpoints" / "best.ckpt"
    run("train", "train", "--cache", cache, "--out", out / "run", "--config", config, "--epochs", 1)
    run("resume", "train", "--out", out / "run", "--resume", "--epochs", 2)
    run("evaluate", "evaluate", out / "run", "--out", out / "report", "--samples", 40)
    model = ("--model", "tests.support.tiny:mapper")
    for layout in ("rsna", "tree"):
        given = (ckpt, getattr(data, layout), *model, "--overlap", 0, "--overlay", out / f"overlay-{layout}")
        run(f"predict {layout}", "predict", *given, "--out", out / f"{layout}.csv", codes=(8,))
    many = [next(p for p in sorted(data.tree.iterdir()) if p.is_dir()), data.empty]
    run("predict JSON", "predict", ckpt, *many, *model, "--out", out / "some.json", codes=(8,))
    run("predict, shown", "predict", ckpt, many[0], *model, codes=(0, 8))
    return out, said


def test_no_marker_is_in_any_file_that_was_written(data: Data, told: tuple[Path, dict[str, Ran]]) -> None:
    out, _ = told
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 60
    found = {}
    for path in files:
        for name, content in unpacked(path.relative_to(out).as_posix(), path.read_bytes()):
            if marks := data.markers.found_in(content):
                found[name] = sorted(marks)
    assert found == {}


def test_no_marker_is_in_the_name_of_any_file_or_folder(data: Data, told: tuple[Path, dict[str, Ran]]) -> None:
    out, _ = told
    names = [path.relative_to(out).as_posix() for path in out.rglob("*")]
    assert {name: marks for name in names if (marks := data.markers.found_in(name.encode()))} == {}


def test_no_marker_is_said(data: Data, told: tuple[Path, dict[str, Ran]]) -> None:
    """But for a path that was itself given on the command line, in what is said of it."""
    _, said = told
    assert len(said) == 31
    given = {text.encode() for path in (data.empty, *data.tree.iterdir()) for text in (str(path),)}
    found = {}
    for title, ran in said.items():
        content = ran.text.encode()
        if title.startswith("predict"):
            for path in given:
                content = content.replace(path, b"")
        if marks := data.markers.found_in(content):
            lines = [line for line in ran.text.splitlines() if data.markers.found_in(line.encode())]
            found[title] = (sorted(marks), lines[:3])
    assert found == {}


def test_the_search_finds_what_is_there(data: Data) -> None:
    """Else the other tests would pass whatever is written."""
    one = next(path for path in data.rsna.rglob("*.dcm") if path.stat().st_size > 10_000)
    found = data.markers.found_in(one.read_bytes())
    assert len(found) > 500
    assert {"PatientName", "PatientBirthDate", "private tag", "StudyDate"} <= found
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", next(iter(data.markers.known)))
    assert any(data.markers.found_in(content) for _, content in unpacked("x.zip", packed.getvalue()))
    assert keyword_for_tag(0x00100010) == "PatientName"
