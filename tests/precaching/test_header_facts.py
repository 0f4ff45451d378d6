"""What headers say of a series, and that they refuse what a run refuses, for the same reason."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless

from aneurysm.errors import Reason
from aneurysm.precaching.header_facts import HeaderFacts, header_facts, read_header_facts
from aneurysm.processes.children import NO_LIMITS, InProcess, LostError, runner
from aneurysm.rawdata.folder import SeriesSource, safe_source
from aneurysm.rawdata.tables import Localizer
from aneurysm.spec import load_spec
from tests.support.acquisition import acquire
from tests.support.cached import rejected
from tests.support.pattern import anatomy
from tests.support.series import write_multiframe, write_series

SPEC = load_spec("rsna-1mm")
UID = "1.2.3.4"
STACK = acquire("coronal", slices=9, shape=(24, 20), spacing_mm=(1.5, 1.25), gap_mm=2.0)


def of(folder, *, localizers=(), uid=UID) -> HeaderFacts:
    return header_facts(safe_source(uid, folder), localizers, SPEC, b"key")


def small(acquisition=STACK, **options):
    return {"acquisition": acquisition, "values": anatomy(acquisition.centre), "uid": UID} | options


def test_what_the_headers_of_a_series_say(tmp_path):
    written = write_series(tmp_path / "s", **small(syntax=JPEG2000Lossless))
    points = [Localizer(2, UID, sop, "Basilar Tip", 1.0, 2.0) for sop in (*written.sops[:2], "1.9.9")]
    facts = of(tmp_path / "s", localizers=points)
    assert (facts.reason, facts.files, facts.frames) == ("", 9, 9)
    assert facts.bytes == sum(p.stat().st_size for p in written.paths)
    assert facts.syntaxes == (JPEG2000Lossless,)
    assert (facts.plane, facts.shape, facts.modality) == ("coronal", (9, 24, 20), "CT")
    assert facts.spacing_mm == (2.0, 1.5, 1.25)
    assert facts.field_mm == (36.0, 25.0)
    assert (facts.length_mm, facts.thickness_mm, facts.images_with_points) == (16.0, 1.0, 2)


def test_of_one_file_with_many_frames(tmp_path):
    write_multiframe(tmp_path / "s", **small())
    facts = of(tmp_path / "s")
    assert (facts.reason, facts.files, facts.frames, facts.plane) == ("", 1, 9, "coronal")
    assert facts.spacing_mm == (2.0, 1.5, 1.25)


def test_patients_are_told_apart_and_not_named(tmp_path):
    for name, patient in (("a", "Miller"), ("b", "Miller"), ("c", "Smith"), ("d", "")):
        write_series(tmp_path / name, **small(edit=lambda dataset, _, p=patient: setattr(dataset, "PatientID", p)))
    keys = [of(tmp_path / name).patient for name in "abcd"]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == ""
    assert not any("Miller" in key for key in keys)


def far(dataset, index):
    if index > 5:
        dataset.ImagePositionPatient[1] += 80 + 90 * (index % 2)


def colour(dataset, _index):
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "RGB", 3


def without_place(dataset, _index):
    del dataset.ImagePositionPatient


def other_kind(dataset, _index):
    dataset.Modality = "US"


def mosaic(dataset, _index):
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]


def tiny_pixels(dataset, _index):
    dataset.PixelSpacing = [0.001, 0.001]


@pytest.mark.parametrize("fault", [far, colour, without_place, other_kind, mosaic, tiny_pixels])
def test_what_headers_refuse_a_run_refuses_for_the_same_reason(tmp_path, fault):
    write_series(tmp_path / "data", **small(edit=fault))
    facts = header_facts(SeriesSource(UID, files=tuple(map(str, sorted((tmp_path / "data").iterdir())))), (), SPEC, b"")
    assert facts.reason
    assert facts.detail
    assert facts.reason == rejected(tmp_path / "data")


def test_damaged_files_and_empty_folders_and_odd_uids(tmp_path):
    write_series(tmp_path / "s", **small())
    for path in sorted((tmp_path / "s").iterdir())[:4]:
        path.write_bytes(path.read_bytes()[:600])
    assert of(tmp_path / "s").reason == "unreadable_pixels"
    (tmp_path / "empty").mkdir()
    facts = of(tmp_path / "empty")
    assert (facts.reason, facts.files) == ("no_files", 0)
    assert of(tmp_path / "s", uid="../x").reason == "invalid_uid"


def test_each_in_order_by_processes_as_in_this_one(tmp_path):
    asked = []
    for k in range(5):
        stack = STACK.take(np.arange(5 + k))
        write_series(tmp_path / str(k), **small(stack, uid=f"1.2.{k}"))
        asked.append((safe_source(f"1.2.{k}", tmp_path / str(k)), ()))
    here = list(read_header_facts(asked, SPEC, b"key", 0, NO_LIMITS, InProcess()))
    assert [f.shape[0] for f in here] == [5, 6, 7, 8, 9]
    with runner(1) as processes:
        assert list(read_header_facts(asked, SPEC, b"key", 1, NO_LIMITS, processes)) == here


class Fragile(InProcess):
    """Processes that die at a series, as often as is said."""

    def __init__(self, uid: str, deaths: int) -> None:
        super().__init__()
        self.uid, self.deaths = uid, deaths

    def run(self, function, *args, limits=NO_LIMITS):
        if any(source.uid == self.uid for source, _ in args[0]) and self.deaths:
            self.deaths -= 1
            raise LostError(Reason.WORKER_KILLED, "the process that worked on it was ended by SIGSEGV")
        return super().run(function, *args, limits=limits)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_series_whose_process_dies_is_tried_once_more(tmp_path, deaths):
    asked = []
    for uid in ("1.2.1", "1.2.2"):
        write_series(tmp_path / uid, **small(uid=uid))
        asked.append((safe_source(uid, tmp_path / uid), ()))
    first, second = read_header_facts(asked, SPEC, b"", 1, NO_LIMITS, Fragile("1.2.2", deaths))
    assert (first.uid, first.reason) == ("1.2.1", "")
    assert (second.uid, second.reason) == ("1.2.2", "" if deaths == 1 else "worker_killed")
    if deaths == 2:
        assert second.detail == "the process that worked on it was ended by SIGSEGV (tried twice)"
