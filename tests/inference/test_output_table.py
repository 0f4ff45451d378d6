"""The table that `aneurysm predict` resumes: no row is lost, and none replaced by less."""

from __future__ import annotations

import csv
import os

import numpy as np
import pytest

from aneurysm.annotations.source_pixel import SourcePixel
from aneurysm.cli.predict_output import print_answer
from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.inference.output_table import open_output
from aneurysm.inference.prediction import LocatedCandidate, Prediction
from aneurysm.labels import LABELS
from tests.support.acquisition import acquire
from tests.support.checkpoints import write_checkpoint
from tests.support.command import call_in_process
from tests.support.pattern import lone_blob
from tests.support.series import write_series

PLACE = LocatedCandidate(LABELS[0], 0.5, (1.0, 2.0, 3.0), (3.0, 2.0, 1.0), SourcePixel("1.9", 1.0, 2.0, 7))


def answer(uid, probability=0.5, candidates=1):
    return Prediction(uid, dict.fromkeys(LABELS, probability), np.zeros(14, np.float32), [PLACE] * candidates, [])


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A checkpoint and a folder with one series."""
    root = tmp_path_factory.mktemp("given")
    acquisition = acquire("axial", slices=16)
    write_series(root / "data" / "1.2.0", acquisition, lone_blob(acquisition.centre), uid="1.2.0")
    return write_checkpoint(root / "best.ckpt", 0), root / "data"


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_two_commands_don_t_write_over_each_other_s_rows(given, tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    with open_output(path, "m") as table:
        table.add(answer("1"))
        with pytest.raises(UsageError, match="another command writes to"), open_output(path, "m"):
            pass
        ran = call_in_process("predict", *given, "--out", path)
        assert ran.code == 2
        assert "another command writes to" in ran.err
        table.write()
    with open_output(path, "m") as table:
        assert list(table.rows) == ["1"]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_command_left_is_swept(tmp_path):
    for name in (".x.csv.0123abcd.tmp", ".x.csv.lock", ".y.csv.0123abcd.tmp"):
        (tmp_path / name).touch()
    with open_output(tmp_path / "x.csv", "m"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [".y.csv.0123abcd.tmp"]


def test_a_row_of_many_candidates_is_read_again(tmp_path):
    with open_output(tmp_path / "x.csv", "m") as table:
        table.add(answer("1", candidates=2000))
        table.write()
    csv.field_size_limit(131_072)  # the default, which is of the process
    with open_output(tmp_path / "x.csv", "m") as table:
        assert len(table.rows["1"].candidates) == 2000


def test_a_csv_that_can_t_be_read_is_no_table(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"series_uid\n1\r2\n")
    with (
        pytest.raises(UsageError, match=r"x\.csv .* Name another file for the predictions"),
        open_output(tmp_path / "x.csv", "m"),
    ):
        pass


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a device without an end", "a disk that is full"])
def test_what_is_no_file_is_no_table(tmp_path, kind):
    path = tmp_path / "x.csv"
    {
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a device without an end": lambda: path.symlink_to("/dev/zero"),
        "a disk that is full": lambda: path.symlink_to("/dev/full"),
    }[kind]()
    with pytest.raises(UsageError, match=r"x\.csv is no file: name another"), open_output(path, "m"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_json_has_no_nan(tmp_path, suffix):
    """It is no JSON, and other programs would refuse the file."""
    with open_output(tmp_path / f"x.{suffix}", "m") as table:
        table.add(answer("1"))
        table.rows["1"].candidates[0]["probability"] = float("nan")
        with pytest.raises(ValueError, match="not JSON compliant"):
            table.write()


def test_a_folder_that_is_empty_today_does_not_replace_its_answer(given, tmp_path):
    checkpoint, data = given
    out = tmp_path / "x.json"
    assert call_in_process("predict", checkpoint, data / "1.2.0", "--out", out).code == 0
    kept = out.read_text()
    (tmp_path / "1.2.0").mkdir()
    ran = call_in_process("predict", checkpoint, tmp_path / "1.2.0", "--out", out, "--retry-failed")
    assert ran.code == 0
    assert "1.2.0: path 1 of 1 of series: no DICOM series under it" in ran.err
    assert "its row stays as it is" in ran.err
    assert out.read_text() == kept


def test_a_table_says_in_which_precision_it_was_made(given, tmp_path):
    out = tmp_path / "x.json"
    assert call_in_process("predict", *given, "--out", out, "--device", "cpu").code == 0
    assert call_in_process("predict", *given, "--out", out, "--device", "cpu", "--precision", "fp32").out.startswith(
        "0 series"
    )
    ran = call_in_process("predict", *given, "--out", out, "--device", "cpu", "--precision", "bf16")
    assert (ran.code, "another model or other options" in ran.err) == (2, True)


def test_where_no_table_can_be_written_is_told_before_anything_is_predicted(given, tmp_path, monkeypatch):
    def never(*_args):
        raise AssertionError("it predicts")

    monkeypatch.setattr("aneurysm.inference.predictor.Predictor.predict", never)
    for out in ("/sys/x.csv", "/proc/x.csv"):
        ran = call_in_process("predict", *given, "--out", out)
        assert (ran.code, ran.err.startswith(f"aneurysm: {out} can't be written")) == (2, True), ran.err

    def refused(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("aneurysm.inference.output_table.write_atomically", refused)
    ran = call_in_process("predict", *given, "--out", tmp_path / "x.csv")
    assert ran.code == 2
    assert "x.csv can't be written: Permission denied" in ran.err


def test_a_disk_that_is_full_is_told_and_the_answers_that_were_written_stay(given, tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    with open_output(path, "m") as table:
        table.add(answer("1"))
        table.write()
        before = path.read_bytes()
        table.add(answer("2"))
        monkeypatch.setattr("os.fsync", _full)
        with pytest.raises(NoSpaceError, match=r"x\.csv is full\. It holds the answers that were written before"):
            table.write()
    assert path.read_bytes() == before
    ran = call_in_process("predict", *given, "--out", tmp_path / "y.csv")
    assert (ran.code, ran.err.count("\n")) == (5, 1), ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv"]


def _full(*_args):
    raise OSError(28, "No space left on device")


def test_the_terminal_says_from_where_it_counts(capsys):
    print_answer(answer("1"))
    assert "image 1.9, frame 7, column 1.0, row 2.0 (counted from 0)" in capsys.readouterr().out
