"""`aneurysm predict --overlay`: the commands of docs/overlays.md, and what they leave on the disk."""

from __future__ import annotations

import csv
import json
import re
import shlex

import numpy as np
import pytest
import SimpleITK as sitk

from aneurysm.precaching.run import precache
from tests.support.acquisition import acquire
from tests.support.checkpoints import write_checkpoint
from tests.support.command import call_in_process
from tests.support.pattern import lone_blob
from tests.support.run_data import ROOT
from tests.support.series import write_series

PAGE = (ROOT / "docs" / "overlays.md").read_text()
GRIDS = ("cached", "source")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with the runs and series that the page speaks of."""
    root = tmp_path_factory.mktemp("work")
    write_checkpoint(root / "runs" / "demo" / "checkpoints" / "best.ckpt", 0)
    classifier = {"model": "resnet3d18", "model_options": {"width": 0.0625}}
    write_checkpoint(root / "runs" / "classifier" / "checkpoints" / "best.ckpt", 1, model=classifier)
    for k in range(2):
        acquisition = acquire("axial", slices=20 + 10 * k)
        write_series(
            root / "data" / "series" / f"1.2.{k}", acquisition, lone_blob(acquisition.lps(9, 9, 9)), uid=f"1.2.{k}"
        )
    precache(root / "data", root / "cache", workers=0)
    return root


@pytest.fixture
def here(work, tmp_path, monkeypatch):
    for name in ("runs", "data", "cache"):
        (tmp_path / name).symlink_to(work / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def files(what, grids=GRIDS):
    return sorted(f"1.2.{k}-{what}-{grid}.nii.gz" for k in range(2) for grid in grids)


ALL = files("aneurysm-present")


@pytest.mark.parametrize("command", re.findall(r"^    (aneurysm .*)", PAGE, re.MULTILINE))
def test_the_commands_of_the_page(command, here):
    ran = call_in_process(*shlex.split(command)[1:], cwd=here)
    assert ran.code == 0, ran.err
    what = (
        "basilar-tip" if "Basilar" in command else "aneurysm-present-cam" if "--cam" in command else "aneurysm-present"
    )
    assert names(here / "maps") == files(what)
    for k in range(2):
        source = sitk.ReadImage(str(here / "maps" / f"1.2.{k}-{what}-source.nii.gz"))
        assert source.GetSize() == (28, 32, 20 + 10 * k)
        values = sitk.GetArrayViewFromImage(source)
        assert 0 <= values.min() < values.max() <= 1


def test_the_map_is_as_high_as_the_best_candidate_at_its_place(here):
    ran = call_in_process("predict", "runs/demo", "data/series", "--out", "a.json", "--overlay", "maps", cwd=here)
    assert ran.code == 0, ran.err
    for row in json.loads((here / "a.json").read_text())["series"]:
        best = row["candidates"][0]
        ran = call_in_process(
            "predict", "runs/demo", f"data/series/{row['series_uid']}", "--overlay", "site",
            "--overlay-label", best["site"], cwd=here,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        image = sitk.ReadImage(f"site/{row['series_uid']}-{best['site'].lower().replace(' ', '-')}-cached.nii.gz")
        # ITK's physical space is DICOM's.
        assert image[image.TransformPhysicalPointToIndex(best["lps_mm"])] > best["probability"] - 0.003


@pytest.mark.slow
def test_several_processes_write_the_same(here):
    for folder, options in (("one", ()), ("two", ("--device", "cpu", "--devices", "2"))):
        ran = call_in_process("predict", "runs/demo", "data/series", "--overlay", folder, *options, cwd=here)
        assert ran.code == 0, ran.err
    assert names(here / "two") == ALL
    for name in ALL:
        one, two = (sitk.GetArrayFromImage(sitk.ReadImage(str(here / f / name))) for f in ("one", "two"))
        assert np.allclose(one, two, atol=1.01 / 255)


def test_a_cached_volume_gets_the_same_map_on_its_own_grid_alone(here):
    assert call_in_process("predict", "runs/demo", "data/series", "--overlay", "a", cwd=here).code == 0
    assert call_in_process("predict", "runs/demo", "cache", "--overlay", "b", cwd=here).code == 0
    assert names(here / "b") == files("aneurysm-present", ["cached"])
    for name in names(here / "b"):
        a, b = (sitk.ReadImage(str(here / folder / name)) for folder in "ab")
        assert a.GetOrigin() == b.GetOrigin()
        assert np.allclose(sitk.GetArrayViewFromImage(a), sitk.GetArrayViewFromImage(b), atol=1.01 / 255)


def test_the_same_command_writes_what_is_missing(here):
    command = ("predict", "runs/demo", "data/series", "--out", "a.csv")
    assert call_in_process(*command, cwd=here).out.startswith("2 series in")
    assert call_in_process(*command, "--overlay", "maps", cwd=here).out.startswith("2 series in")
    (here / "maps" / "1.2.1-aneurysm-present-cached.nii.gz").unlink()
    assert call_in_process(*command, "--overlay", "maps", cwd=here).out.startswith("1 series in")
    assert names(here / "maps") == ALL
    assert call_in_process(*command, "--overlay", "maps", cwd=here).out.startswith("0 series in")
    # A map of one label is not taken for that of another.
    other = (*command, "--overlay", "maps", "--overlay-label", "Basilar Tip")
    assert call_in_process(*other, cwd=here).out.startswith("2 series in")
    assert names(here / "maps") == sorted(ALL + files("basilar-tip"))


def test_answers_are_the_same_with_and_without_a_map(here):
    for out, options in (("a.csv", ()), ("b.csv", ("--overlay", "maps", "--cam"))):
        assert call_in_process("predict", "runs/classifier", "data/series", "--out", out, *options, cwd=here).code == 0
    first, second = ((here / name).read_text() for name in ("a.csv", "b.csv"))
    first, second = (list(csv.DictReader(text.splitlines())) for text in (first, second))
    for a, b in zip(first, second, strict=True):
        assert float(a["Aneurysm Present"]) == pytest.approx(float(b["Aneurysm Present"]), abs=1e-4)
        assert [c["zyx"] for c in json.loads(a["candidates"])] == [c["zyx"] for c in json.loads(b["candidates"])]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("runs/classifier", "data/series", "--overlay", "maps"), "--cam"),
        (("runs/demo", "data/series", "--overlay", "maps", "--cam"), "leave out --cam"),
        (("runs/demo", "data/series", "--cam"), "--overlay"),
        (("runs/demo", "data/series", "--overlay", "maps", "--overlay-label", "Aorta"), "label Aorta: choose from"),
        (("runs/demo", "data/series", "--overlay", "runs/demo/checkpoints/best.ckpt/x"), "can't make the folder"),
        (("runs/demo", "data/series", "--overlay", "/sys"), "overlays can't be written in /sys"),
    ],
)
def test_usage_errors(here, arguments, words):
    ran = call_in_process("predict", *arguments, cwd=here)
    assert ran.code == 2
    assert words in ran.err
