"""What `aneurysm predict --out` wrote, and a run's own table, are evaluated with the truth of a table of labels."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from aneurysm.errors import DataError
from aneurysm.prediction_table import read_rows, table_text
from aneurysm.report.evaluate import evaluate
from aneurysm.report.evaluation import EvaluateOptions
from aneurysm.report.results import metrics_table
from aneurysm.report.run import read_predicted, read_run
from tests.support.acquisition import acquire
from tests.support.checkpoints import write_checkpoint
from tests.support.command import call_cli
from tests.support.fake_runs import FakeSeries, change_rows, fake_series, write_labels, write_run
from tests.support.pattern import lone_blob
from tests.support.series import write_series


@pytest.fixture
def run(tmp_path):
    """A run of 60 series whose patients are not known, as in a table."""
    return write_run(tmp_path / "run", no_patients(), n_folds=1)


def no_patients() -> FakeSeries:
    return replace(fake_series(60), patients=[""] * 60)


def as_predicted(run, path):
    """The run's rows as `aneurysm predict` writes them, without what training alone knows."""
    rows = [
        replace(row, modality="", fold=None, part="", digest="", truth=None, model="m", gate=0.0)
        for row in read_rows(run / "predictions_val.csv")
    ]
    path.write_text(table_text(rows, path.suffix))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_run_and_a_table_of_the_same_series_have_the_same_metrics(run, tmp_path, suffix):
    labels = write_labels(tmp_path / "train.csv", no_patients())
    table = as_predicted(run, tmp_path / f"answers{suffix}")
    options = EvaluateOptions(samples=50)
    whole = evaluate([run], options=options)
    for path, part in ((table, "predicted"), (run / "predictions_val.csv", "predicted")):
        found = evaluate([read_predicted(path, labels)], options=options)
        assert found.part == part
        for name in ("overall", "labels", "by"):
            assert metrics_table(found)[name] == metrics_table(whole)[name]
        np.testing.assert_array_equal(found.predictions.probabilities, whole.predictions.probabilities)


def test_csv_and_json_hold_the_same_rows(run, tmp_path):
    rows = read_rows(run / "predictions_val.csv")
    rows[0] = replace(rows[0], status="failed", reason="timed_out", detail="not done", probabilities=None, truth=None)
    for suffix in (".csv", ".json"):
        (tmp_path / f"x{suffix}").write_text(table_text(rows, suffix))
    assert read_rows(tmp_path / "x.json") == rows
    unknown = dict.fromkeys(rows[1].truth)
    assert read_rows(tmp_path / "x.csv") == [replace(rows[0], truth=unknown), *rows[1:]]


def test_what_is_left_out_is_said(run, tmp_path):
    series = no_patients()
    few = FakeSeries(*(values[:50] for values in (series.uids, series.patients, series.modalities, series.labels)))
    table = as_predicted(run, tmp_path / "answers.csv")
    first, *others = read_rows(table)
    failed = replace(first, status="failed", reason="timed_out")  # with base rates for an answer
    table.write_text(table_text([failed, *others], ".csv"))
    said = []
    found = read_predicted(table, write_labels(tmp_path / "train.csv", few), on_omission=said.append)
    assert len(found.predictions) == 49
    assert said[0] == f"1 of 60 series in {table} have no prediction, and are left out"
    assert said[1].startswith(f"10 series in {table} have no labels in {tmp_path / 'train.csv'}, and are left out: ")


def twice(rows):
    return [*rows, rows[0]]


def unlabelled(rows):
    return [replace(row, series_uid=f"9.{i}") for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "words"), [(twice, "has two rows of series"), (unlabelled, "none of the 60 series predicted in")]
)
@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_tables_that_can_t_be_evaluated(run, tmp_path, change, words, suffix):
    table = as_predicted(run, tmp_path / f"answers{suffix}")
    table.write_text(table_text(change(read_rows(table)), suffix))
    labels = write_labels(tmp_path / "train.csv", no_patients())
    with pytest.raises(DataError, match=words):
        read_predicted(table, labels)


def test_a_table_of_another_version_is_one_line(run, tmp_path):
    table = as_predicted(run, tmp_path / "answers.json")
    table.write_text(table.read_text().replace('"format_version": 1', '"format_version": 2'))
    labels = write_labels(tmp_path / "train.csv", no_patients())
    ran = call_cli("evaluate", table, "--labels", labels, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "is a table of predictions of version '2', this program reads version 1: predict again" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{table}",), "is a table of predictions: give the truth with --labels"),
        (("{table}", "{run}", "--labels", "{labels}"), "neither runs nor --fresh with it"),
        (("{run}", "--labels", "{labels}"), "--labels goes with tables"),
        (("{table}", "--labels", "{labels}"), "name the report's folder with --out"),
        (("{table}", "--labels", "{run}", "--out", "{run}/out"), "there is no table of labels"),
        (("{labels}", "--labels", "{labels}", "--out", "{run}/out"), "lacks the column(s) series_uid"),
    ],
)
def test_what_does_not_go_together_is_one_line(run, tmp_path, arguments, words):
    places = {
        "run": run, "table": as_predicted(run, tmp_path / "a.csv"),
        "labels": write_labels(tmp_path / "train.csv", no_patients()),
    }  # fmt: skip
    ran = call_cli("evaluate", *(argument.format(**places) for argument in arguments))
    assert ran.code == 2
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1


def test_from_dicom_over_predict_to_the_report(tmp_path):
    """Also candidates and a series that failed; nothing is drawn, which takes seconds."""
    labels = np.zeros((8, 14), np.uint8)
    labels[::2, [4, 13]] = 1
    uids = [f"1.2.{i}" for i in range(8)]
    for i, uid in enumerate(uids):
        acquisition = acquire("axial", slices=12)
        blob = lone_blob(acquisition.lps(6, 9, 9), height=300.0 + 200 * (i % 2) + 10 * i)
        write_series(tmp_path / "data" / uid, acquisition, blob, uid=uid)
    write_series(tmp_path / "data" / "1.2.9", acquire(slices=1), lone_blob(np.zeros(3)), uid="1.2.9")
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", 0)
    table = tmp_path / "answers.csv"
    given = (checkpoint, tmp_path / "data", "--out", table, "--device", "cpu", "--fallback", "prevalence")
    assert call_cli("predict", *given).code == 8
    truth = write_labels(tmp_path / "train.csv", FakeSeries(uids, uids, ["CTA"] * 8, labels))
    out = tmp_path / "out"
    ran = call_cli("evaluate", table, "--labels", truth, "--out", out, "--samples", 50, "--cases", 0)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("8 predicted series of 8 patients")
    assert "1 of 9 series in" in ran.err
    metrics = json.loads((out / "metrics.json").read_text())
    rows = {row.series_uid: row for row in read_rows(table)}
    present = [rows[uid].probabilities["Aneurysm Present"] for uid in uids]
    ranks = np.argsort(np.argsort(present)) + 1
    auc = (ranks[::2].sum() - 10) / 16
    assert metrics["overall"]["present_auc"]["value"] == pytest.approx(auc)
    assert "whether the models were trained on these series" in (out / "report.html").read_text()
    assert read_predicted(table, truth).candidates is not None


def test_a_run_keeps_its_part(run, tmp_path):
    change_rows(run, lambda row: replace(row, part="val"))
    labels = write_labels(tmp_path / "train.csv", no_patients())
    assert read_predicted(run / "predictions_val.csv", labels).part == read_run(run).part == "val"
