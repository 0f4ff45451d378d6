"""`aneurysm predict` from end to end: rows for all series, also the bad ones; and a run that goes on."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from aneurysm.labels import LABELS, SITES
from tests.support.acquisition import acquire
from tests.support.calibrations import write_calibration
from tests.support.checkpoints import PREVALENCE, write_checkpoint
from tests.support.command import call_in_process
from tests.support.pattern import lone_blob
from tests.support.series import write_series


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "best.ckpt", 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for k in range(2):
        acquisition = acquire("axial", slices=20 + 10 * k)
        write_series(root / f"1.2.{k}", acquisition, lone_blob(acquisition.lps(9, 9 + k, 9)), uid=f"1.2.{k}")
    write_series(root / "1.2.7", acquire(slices=1), lone_blob(np.zeros(3)), uid="1.2.7")
    return root


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_of_all_series(data, checkpoint, tmp_path):
    out = tmp_path / "found.csv"
    ran = call_in_process("predict", checkpoint, data, "--out", out, "--candidates", 2)
    assert ran.code == 8
    assert "rejected 1.2.7: too_few_slices" in ran.err
    assert "Not for clinical use" in ran.err
    rows = rows_of(out)
    assert [r["series_uid"] for r in rows] == ["1.2.0", "1.2.1", "1.2.7"]
    assert [r["status"] for r in rows] == ["predicted", "predicted", "rejected"]
    assert list(rows[0])[4:18] == list(LABELS)
    for row in rows[:2]:
        assert all(0 <= float(row[label]) <= 1 for label in LABELS)
        candidates = json.loads(row["candidates"])
        assert 1 <= len(candidates) <= 2
        for candidate in candidates:
            assert candidate["site"] in SITES
            assert len(candidate["lps_mm"]) == 3
            assert (data / row["series_uid"] / f"{candidate['source']['sop_uid']}.dcm").is_file()
    assert rows[2]["reason"] == "too_few_slices"
    assert rows[2][LABELS[0]] == ""


def test_json_holds_the_same_as_csv_and_the_terminal(data, checkpoint, tmp_path):
    call_in_process("predict", checkpoint.parent.parent, data / "1.2.1", "--out", tmp_path / "a.csv")
    ran = call_in_process("predict", checkpoint, data / "1.2.1", "--out", tmp_path / "a.json")
    assert ran.code == 0
    (row,) = rows_of(tmp_path / "a.csv")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["labels"] == list(LABELS)
    (series,) = content["series"]
    assert series["probabilities"] == {label: float(row[label]) for label in LABELS}
    assert series["candidates"] == json.loads(row["candidates"])
    shown = call_in_process("predict", checkpoint, data / "1.2.1")
    assert shown.code == 0
    assert "1.2.1" in shown.out
    assert series["candidates"][0]["source"]["sop_uid"] in shown.out
    assert f"{series['probabilities'][LABELS[13]]:6.1%}  {LABELS[13]}" in shown.out


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_the_same_command_goes_on(data, checkpoint, tmp_path, suffix):
    moving, out = tmp_path / "data", tmp_path / f"found.{suffix}"
    shutil.copytree(data / "1.2.0", moving / "1.2.0")
    shutil.copytree(data / "1.2.7", moving / "1.2.7")
    assert call_in_process("predict", checkpoint, moving, "--out", out).code == 8
    first = out.read_text()
    again = call_in_process("predict", checkpoint, moving, "--out", out)
    assert again.code == 8
    assert again.out.startswith("0 series in")
    assert out.read_text() == first
    shutil.copytree(data / "1.2.1", moving / "1.2.1")
    more = call_in_process("predict", checkpoint, moving, "--out", out, "--retry-failed")
    assert more.out.startswith("2 series in")
    assert "holds 3, 1 of them without an answer" in more.out
    whole = tmp_path / f"whole.{suffix}"
    call_in_process("predict", checkpoint, moving, "--out", whole)
    # Not to the last digit: convolutions round otherwise in a batch of another size.
    for mine, theirs in zip(ordered(out), ordered(whole), strict=True):
        assert (mine["series_uid"], mine["status"], mine["reason"]) == tuple(
            theirs[k] for k in ("series_uid", "status", "reason")
        )
        assert np.allclose(probabilities_of(mine), probabilities_of(theirs), atol=1e-5)


def ordered(path):
    rows = rows_of(path) if path.suffix == ".csv" else json.loads(path.read_text())["series"]
    return sorted(rows, key=lambda row: row["series_uid"])


def probabilities_of(row):
    values = row if LABELS[0] in row else row["probabilities"] or {}
    return [float(values.get(label) or "nan") for label in LABELS if row["status"] == "predicted"]


def test_answers_of_two_models_don_t_mix(data, checkpoint, tmp_path):
    out = tmp_path / "found.csv"
    call_in_process("predict", checkpoint, data / "1.2.0", "--out", out)
    kept = out.read_text()
    for options in (["--flip"], ["--overlap", "0.5"]):
        ran = call_in_process("predict", checkpoint, data / "1.2.0", "--out", out, *options)
        assert ran.code == 2
        assert "another model or other options" in ran.err
    assert out.read_text() == kept


@pytest.fixture
def run(checkpoint, tmp_path):
    """A run's folder of the test's own, with a calibration in its report."""
    shutil.copytree(checkpoint.parent.parent, tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    write_calibration(tmp_path / "run" / "evaluation" / "calibration.json", [best], 3.0)
    return tmp_path / "run"


def predicted(tmp_path, *arguments):
    """The 14 probabilities of the one series, its row, and what was said."""
    out = tmp_path / "found.csv"
    out.unlink(missing_ok=True)
    ran = call_in_process("predict", *arguments, "--out", out)
    assert ran.code == 0, ran.text
    (row,) = rows_of(out)
    return np.array(probabilities_of(row)), row, ran.err


def test_a_runs_own_calibration_is_applied_and_said(data, run, tmp_path):
    plain, row, said = predicted(tmp_path, run, data / "1.2.0", "--no-calibration")
    assert (row["calibration"], float(row["gate"])) == ("", 0.0)
    assert "calibrated" not in said
    own, row, said = predicted(tmp_path, run, data / "1.2.0")
    assert f"calibrated with {run / 'evaluation' / 'calibration.json'}; --no-calibration leaves" in said
    assert len(row["calibration"]) == 12
    odds = plain / (1 - plain)
    assert np.allclose(own, odds ** (1 / 3) / (1 + odds ** (1 / 3)), rtol=1e-4)
    named = predicted(tmp_path, run, data / "1.2.0", "--calibration", run / "evaluation")
    assert np.array_equal(named[0], own)
    assert named[1]["calibration"] == row["calibration"]
    gated, row, _ = predicted(tmp_path, run, data / "1.2.0", "--gate", 0.5)
    assert np.allclose(gated[:13], own[:13] * own[13] ** 0.5, rtol=1e-4)
    assert gated[13] == own[13]
    assert float(row["gate"]) == 0.5


def test_a_calibration_of_other_checkpoints_is_not_applied(data, run, checkpoint, tmp_path):
    other = write_checkpoint(tmp_path / "other.ckpt", 1)
    path = write_calibration(run / "evaluation" / "calibration.json", [other])
    _, row, said = predicted(tmp_path, run, data / "1.2.0")
    assert row["calibration"] == ""
    assert f"not calibrated: {path} was fitted to the best checkpoint of run0, which" in said
    ran = call_in_process("predict", run, data / "1.2.0", "--calibration", path)
    assert ran.code == 2
    assert "or no longer" in ran.err
    ran = call_in_process("predict", run, data / "1.2.0", "--calibration", path, "--no-calibration")
    assert ran.code == 2
    # Of several checkpoints none is looked for.
    _, row, said = predicted(tmp_path, run, other, data / "1.2.0")
    assert row["calibration"] == ""
    assert "calibrated" not in said


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_base_rates_stand_in_for_an_answer(data, checkpoint, tmp_path, suffix):
    out = tmp_path / f"found.{suffix}"
    for _ in range(2):  # the second finds the rows as they were written
        ran = call_in_process("predict", checkpoint, data / "1.2.7", "--out", out, "--fallback", "prevalence")
        assert ran.code == 8
    (row,) = ordered(out)
    assert (row["status"], row["reason"]) == ("rejected", "too_few_slices")
    values = row if suffix == "csv" else row["probabilities"]
    assert [float(values[label]) for label in LABELS] == pytest.approx(PREVALENCE)
    shown = call_in_process("predict", checkpoint, data / "1.2.7", "--fallback", "prevalence")
    assert shown.code == 8
    assert "1.2.7: no answer, but base rates" in shown.out
    assert "43.0%  Aneurysm Present" in shown.out


def test_an_older_checkpoint_has_no_base_rates(data, tmp_path):
    old = write_checkpoint(tmp_path / "old.ckpt", 0, prevalence=None)
    assert call_in_process("predict", old, data / "1.2.0").code == 0
    ran = call_in_process("predict", old, data / "1.2.0", "--fallback", "prevalence")
    assert ran.code == 2
    assert "older version" in ran.err


def test_what_is_written_stays_when_a_run_is_interrupted(data, checkpoint, tmp_path, monkeypatch):
    from aneurysm.inference import predictor

    whole = predictor.Predictor.predict

    def interrupted(self, *arguments):
        yield next(iter(whole(self, *arguments)))
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor.Predictor, "predict", interrupted)
    out = tmp_path / "found.csv"
    ran = call_in_process("predict", checkpoint, data, "--out", out)
    assert ran.code == 130
    assert "resumes" in ran.err
    assert [r["series_uid"] for r in rows_of(out)] == ["1.2.0"]


def test_an_empty_folder_is_a_row(data, checkpoint, tmp_path):
    (tmp_path / "1.2.5").mkdir()
    out = tmp_path / "found.csv"
    ran = call_in_process("predict", checkpoint, tmp_path / "1.2.5", data / "1.2.0", "--out", out)
    assert ran.code == 8
    assert [(r["series_uid"], r["reason"]) for r in rows_of(out)] == [("1.2.5", "no_images"), ("1.2.0", "")]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{data}"], "no checkpoint"),
        (["{checkpoint}"], "no series among"),
        (["{data}/none.ckpt", "{data}"], "there is no checkpoint"),
        (["{checkpoint}", "{data}/nowhere"], "there is no"),
        (["{checkpoint}", "{data}", "--out", "x.xlsx"], "must end in .csv or .json"),
        (["{checkpoint}", "{data}", "--out", "{data}/nowhere/x.csv"], "there is no folder"),
        (["{checkpoint}", "{data}", "--out", "/proc/x.csv"], "/proc/x.csv can't be written: "),
        (["{checkpoint}", "{data}", "--out", "{checkpoint}.csv"], "is no table of predictions"),
        (["{checkpoint}", "{data}", "--precision", "fp8"], "--precision fp8: choose from fp32"),
        (["{checkpoint}", "{data}", "--precision", "fp16", "--device", "cpu"], "--precision fp16 needs a GPU"),
        (["{checkpoint}", "{data}", "--device", "gpu"], "there is no device 'gpu'"),
        (["{checkpoint}", "{data}", "--device", "cuda:99"], "there is no cuda:99"),
        (["{checkpoint}", "{data}", "--gate", "-1"], "--gate -1: give a number, 0 or more"),
        (["{checkpoint}", "{data}", "--devices", "none"], "give a number from 1, or auto"),
        (["{checkpoint}", "{data}", "--calibration", "{data}"], "can't be read"),
    ],
)
def test_usage_errors(data, checkpoint, arguments, words):
    checkpoint.with_name("best.ckpt.csv").write_text("a,b\n1,2\n")
    ran = call_in_process("predict", *(a.format(data=data, checkpoint=checkpoint) for a in arguments))
    assert ran.code == 2
    assert words in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_dicom_is_refused_by_a_model_of_plain_arrays(data, tmp_path, devices):
    checkpoint = write_checkpoint(tmp_path / "x.ckpt", 0, spec="arrays-u8", modalities=["unknown"])
    out = tmp_path / "found.csv"
    ran = call_in_process("predict", checkpoint, data, "--out", out, "--device", "cpu", "--devices", devices)
    assert ran.code == 2
    assert "trained on plain arrays" in ran.err
    assert not out.exists() or rows_of(out) == []
