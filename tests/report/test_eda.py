"""The page about data: a small data set whose every figure is known, from a folder and a store, with tables or none."""

from __future__ import annotations

import errno
import html
import os
import re
from pathlib import Path

import numpy as np
import pytest

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS, SITES
from aneurysm.precaching.run import precache
from aneurysm.report import eda_page
from aneurysm.report.eda import Exploration, choose_samples, explore
from aneurysm.report.eda_page import render_exploration, write_eda_page
from tests.support.acquisition import acquire
from tests.support.browser import CHROMIUM, load, measured
from tests.support.command import call_in_process
from tests.support.pattern import anatomy
from tests.support.s3 import Bucket
from tests.support.series import write_series
from tests.support.trees import RsnaTree

AXIAL = acquire("axial", slices=5, shape=(16, 14), spacing_mm=(1.5, 1.0), gap_mm=3.0)
SAGITTAL = acquire("sagittal", slices=7, shape=(12, 20), spacing_mm=(1.0, 1.0), gap_mm=2.0)
ACOM, TIP = "Anterior Communicating Artery", "Basilar Tip"
CTA = {
    # Patient, age, sex, positive sites, points.
    "1.2.1": ("Miller", 41, "Female", (ACOM,), (ACOM,)),
    "1.2.2": ("Miller", 42, "Female", (ACOM, TIP), (ACOM, TIP)),
    "1.2.3": ("p3", 45, "Female", (), ()),
    "1.2.4": ("p4", 48, "Female", (TIP,), ()),
    "1.2.5": ("p5", 55, "Female", (), ()),
    "1.2.6": ("p6", 56, "Female", (), ()),
}
MRA = {"1.3.1": ("p7", 88, "Male", (ACOM,), (ACOM,)), "1.3.2": ("p8", 61, "Male", (), ())}
SECRETS = ("Miller", "p3", "Nobody")


def declare(tree: RsnaTree, uid: str, age: object, sex: str, modality: str, sites: tuple[str, ...]) -> None:
    tree.train.append([uid, age, sex, modality, *(int(site in sites) for site in SITES), int(bool(sites))])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight series that can be cached, one of ultrasound, one that train.csv lacks, and a row without a series."""
    tree = RsnaTree(tmp_path_factory.mktemp("eda") / "data")
    for modality, stack, series in (("CTA", AXIAL, CTA), ("MRA", SAGITTAL, MRA)):
        for uid, (patient, age, sex, sites, points) in series.items():
            sops = write_series(
                tree.folder(uid), stack, anatomy(stack.centre), uid=uid, modality="CT" if modality == "CTA" else "MR",
                edit=lambda dataset, _, p=patient: setattr(dataset, "PatientID", p),
            ).sops  # fmt: skip
            declare(tree, uid, age, sex, modality, sites)
            for number, site in enumerate(points):
                tree.localize(uid, sops[2], 4.0 + number, 6.0, site)
    write_series(
        tree.folder("1.4.1"), AXIAL, anatomy(AXIAL.centre), uid="1.4.1", edit=lambda d, _: setattr(d, "Modality", "US")
    )
    declare(tree, "1.4.1", 70, "Male", "MRI T2", ())
    write_series(tree.folder("1.5.1"), AXIAL, anatomy(AXIAL.centre), uid="1.5.1")
    declare(tree, "1.9.9", 30, "Male", "CTA", (TIP,))
    tree.localize("1.3.1", "1.7.7", 1.0, 1.0, ACOM)
    return tree.write_tables()


@pytest.fixture(scope="module")
def exploration(data: Path) -> Exploration:
    return explore(data, workers=0)


@pytest.fixture(scope="module")
def page(exploration: Exploration) -> str:
    return render_exploration(exploration)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without plots, each of which takes a while."""
    monkeypatch.setattr(eda_page, "histogram", lambda *_: None)
    monkeypatch.setattr(eda_page, "age_plot", lambda *_: None)


def text_of(page: str) -> str:
    words = re.sub(r"<[^>]+>", " ", re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.DOTALL))
    return re.sub(r"\s+", " ", html.unescape(words))


def test_what_is_known_of_the_series(exploration: Exploration) -> None:
    assert [s.facts.uid for s in exploration.series] == sorted([*CTA, *MRA, "1.4.1", "1.5.1"])
    assert exploration.modalities == ["CTA", "MRA", "MRI T2", "CT"]
    # Two series of one patient, and two of which the PatientID is a placeholder.
    assert exploration.patients == 8
    assert (len(exploration.labelled), exploration.rows_without_series) == (9, 1)
    assert exploration.rejections == {
        "unsupported_modality": (1, "1.4.1", "DICOM Modality is 'US'; CT and MR are read"),
    }  # fmt: skip


def test_what_the_page_says(page: str) -> None:
    text = text_of(page)
    for part in (
        "10 series of 8 patients in the RSNA layout",
        "With aneurysm 44.4% 4 of 9 series",
        "Rejected by headers 1 of 10, by spec rsna-1mm",
        "CTA 6 5 6 30 5 5",
        "MRA 2 2 2 14 7 7",
        "All 10 8 9 54 5 7",
        "9 of 10 series have labels in train.csv; it names 1 more that are not in the data.",
        "Label CTA, n = 6 MRA, n = 2 MRI T2, n = 1 All, n = 9",
        f"{ACOM} 2 (33.3%)",
        f"{LABELS[-1]} 3 (50.0%)",
        "n = 9 series L infraclinoid",
        "Marked points in a series 0 1 2 3 4 5 or more n CTA 4 1 1 0 0 0 6 MRA 1 0 1 0 0 0 2",
        "in an image that the series has not 1",
        "Series with an aneurysm and no point 1",
        "axial 6 0 0 1 7",
        "sagittal 0 2 0 0 2",
        "Distance of slices, mm CTA 6 3.00 3.00 3.00 3.00 3.00",
        "Field of view, larger side, mm MRA 2 20 20 20 20 20",
        "16 \N{MULTIPLICATION SIGN} 14 7 77.8% 12 \N{MULTIPLICATION SIGN} 20 2 22.2% n 9",
        "explicit little endian 6 2 1 1 10",
        "unsupported_modality 1 DICOM Modality is 'US'; CT and MR are read 1.4.1",
    ):
        assert part in text, part


def test_sites_and_their_phi_stand_in_the_page(page: str) -> None:
    """Of 9 series 3 have the one, 2 the other, 1 both, 5 neither: (1 * 5 - 2 * 1) / sqrt(3 * 6 * 2 * 7)."""
    (row,) = re.findall(r"<tr><th>Basilar tip</th>(.*?)</tr>", page)
    cells = re.findall(r">(\d+)(?:<small>(.*?)</small>)?</td>", row)
    assert cells[SITES.index(ACOM)] == ("1", f"{3 / np.sqrt(252):.2f}")
    assert cells[SITES.index(TIP)] == ("2", "")
    assert cells[0] == ("0", "n/a")


def test_ages_are_of_patients_and_in_groups(exploration: Exploration, page: str) -> None:
    """Miller counts once; three men are too few to be shown, and one patient has no row."""
    ages = exploration.ages
    assert ages is not None
    assert [(str(g), g.patients) for g in ages.groups["female"]] == [("all ages", 5)]
    assert (ages.groups["male"], ages.others) == ([], 3)
    text = text_of(page)
    assert "Female Patients Share all ages 5 100.0%" in text
    assert "Male Patients Share all ages < 5" in text
    assert "< 5 patients are not here" in text


def test_samples_show_points_first(exploration: Exploration, page: str) -> None:
    images = {s.uid: s.image for s in exploration.samples}
    assert set(images) == {"1.3.1", "1.3.2", "1.5.1", *images.keys() & CTA.keys()}
    assert {"1.2.1", "1.2.2", "1.3.1"} <= set(images)
    two = images["1.2.2"]
    assert two is not None
    assert two.points == ((ACOM, 4.0, 6.0), (TIP, 5.0, 6.0))
    assert two.number == 3
    assert [s.facts.uid for s in choose_samples(exploration.series, "MRA", 1)] == ["1.3.1"]
    assert page.count("<svg") == 7
    assert page.count('src="data:image/jpeg;base64,') == len(images) == 7


def test_nothing_of_a_patient_and_nothing_from_elsewhere_is_in_it(page: str) -> None:
    assert not [secret for secret in SECRETS if re.search(rf"\b{secret}\b", page)]
    references = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', page)
    assert references
    assert [r for r in references if not r.startswith(("#", "data:image/jpeg"))] == []
    assert "<script" not in page


@pytest.mark.usefixtures("plain")
def test_the_same_page_from_a_store(data: Path, exploration: Exploration, bucket: Bucket) -> None:
    url = bucket.upload(data, "data")
    assert render_exploration(explore(url, workers=0)) == render_exploration(exploration)
    # A tree has no tables, and its series are named by what the files say.
    tree = explore(f"{url}/series/1.3.1", workers=0, cases=0)
    assert (tree.layout, [s.facts.uid for s in tree.series]) == ("tree", ["1.3.1"])
    assert tree.series[0].facts.spacing_mm == (2.0, 1.0, 1.0)


@pytest.mark.usefixtures("plain")
def test_without_tables_it_shows_what_there_is_and_says_what_is_missing(data: Path, tmp_path: Path) -> None:
    (tmp_path / "series").symlink_to(data / "series")
    found = explore(tmp_path, workers=0, cases=0)
    text = text_of(render_exploration(found))
    assert found.modalities == ["CT", "MR", "not known"]
    for part in (
        "There is no train.csv:",
        "There is no train_localizers.csv:",
        "10 series of 8 patients",
        "Prevalence of labels Not known: there is no train.csv.",
        "Ages and sexes of patients Not known: there is no train.csv.",
        "Which sites go together Not known: there is no train.csv.",
        "Lesions a series Not known: there is no train_localizers.csv.",
        "axial 7 0 0 7",
        "Sample slices None.",
    ):
        assert part in text, part


@pytest.mark.usefixtures("plain")
def test_a_table_without_ages_or_of_other_series(data: Path, tmp_path: Path) -> None:
    (tmp_path / "series").symlink_to(data / "series")
    rows = [row.split(",") for row in (data / "train.csv").read_text().splitlines()]
    header, *lines = [",".join([row[0], *row[3:]]) for row in rows]
    (tmp_path / "train.csv").write_text("\n".join([header, *lines]))
    found = explore(tmp_path, workers=0, cases=0)
    assert (found.ages, len(found.labelled)) == (None, 9)
    assert "train.csv gives no age with a sex" in text_of(render_exploration(found))
    (tmp_path / "train.csv").write_text(f"{header}\n{lines[-1]}\n")
    text = text_of(render_exploration(explore(tmp_path, workers=0, cases=0)))
    assert text.count("Not known: train.csv names none of these series.") == 2


@pytest.mark.usefixtures("plain")
def test_a_cache_says_what_its_runs_rejected(data: Path, tmp_path: Path) -> None:
    precache(data, tmp_path / "cache", workers=0, series=["1.2.1", "1.2.2", "1.4.1"])
    found = explore(data, cache=tmp_path / "cache", workers=0, cases=0)
    assert found.records is not None
    assert (found.records.cached, found.records.not_cached, found.records.missing) == (2, 1, 7)
    text = text_of(render_exploration(found))
    assert "unsupported_modality 1 1 DICOM Modality" in text
    assert "In the cache 2 1 not cached, 7 not yet built" in text


@pytest.mark.usefixtures("plain")
def test_the_command(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    for _ in range(2):  # what is there is replaced
        ran = call_in_process("eda", "--data", data, "--out", out, "--cases", 1)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out == (
            f"10 series of 8 patients; by their headers, 1 would be rejected.\nRead {out / 'eda.html'}.\n"
        )
    assert [p.name for p in out.iterdir()] == ["eda.html"]


@pytest.mark.parametrize(
    "options, code, words",
    [
        (("--cache", "c", "--spec", "rsna-1mm"), 2, "--spec goes without --cache"),
        (("--cache", "c"), 3, "there is no cache at"),
        (("--data", "nowhere"), 2, "nowhere"),
        (("--spec", "nonsense"), 2, "nonsense"),
        (("--memory-mb", "10"), 2, "at least 250"),
        (("--out", "file"), 2, "the page can't be written to file"),
        (("--out", "file/in"), 2, "the page can't be written to file/in"),
    ],
)
def test_what_is_refused(data: Path, tmp_path: Path, options: tuple[str, ...], code: int, words: str) -> None:
    (tmp_path / "file").touch()
    given = {"--data": str(data), "--out": "out", "--cases": "0"} | dict(zip(options[::2], options[1::2], strict=True))
    ran = call_in_process("eda", *(word for pair in given.items() for word in pair), cwd=tmp_path)
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err
    assert ran.err.count("\n") == 1


def test_a_damaged_table_is_one_line(data: Path, tmp_path: Path) -> None:
    (tmp_path / "series").symlink_to(data / "series")
    (tmp_path / "train.csv").write_text("SeriesInstanceUID,PatientAge\n1.2.1,50\n")
    with pytest.raises(UsageError, match=r"train\.csv lacks the column\(s\) Modality"):
        explore(tmp_path, workers=0)


@pytest.mark.usefixtures("plain")
def test_of_data_of_which_nothing_can_be_cached(data: Path, tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.4.1").symlink_to(data / "series" / "1.4.1")
    (tmp_path / "series" / "1.8.8").mkdir()
    text = text_of(render_exploration(explore(tmp_path, workers=0)))
    for part in ("Rejected by headers 2 of 2", "No series can be cached.", "Sample slices None.", "no_files 1"):
        assert part in text, part


@pytest.mark.usefixtures("plain")
def test_a_full_disk_is_told(exploration: Exploration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(eda_page, "write_atomically", fill)
    with pytest.raises(OSError, match="is full: there is no page"):
        write_eda_page(exploration, tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")
def test_in_a_browser_it_loads_without_a_word_and_only_tables_scroll(page: str, tmp_path: Path) -> None:
    path = tmp_path / "eda.html"
    path.write_text(page)
    assert load(path, tmp_path).console == []
    assert [measured(path, tmp_path, width=width)[0] for width in (1300, 390, 320)] == [1300, 390, 320]
