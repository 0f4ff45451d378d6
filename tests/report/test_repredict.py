"""Runs predicted again: what training predicted, or of a cache that the run has never seen, and no others."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from aneurysm.errors import SpecMismatchError, UsageError
from aneurysm.inference.calibration import checkpoint_digest
from aneurysm.report.repredict import FreshOptions, predict_fresh
from aneurysm.report.run import read_run
from aneurysm.training.fit import fit
from aneurysm.training.run_folder import RunFolder
from tests.support.command import call_cli
from tests.support.noise_cache import add_volume, finish_cache
from tests.support.train_runs import make_cache, quick

MODEL = "tests.support.tiny:mapper"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """Two folds of a cross-validation."""
    root = tmp_path_factory.mktemp("runs")
    for fold in range(2):
        fit(quick(cache, model=MODEL, epochs=1, fold=fold, validation__overlap=0.0), RunFolder(root / f"fold{fold}"))
    return [root / "fold0", root / "fold1"]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A cache of other patients."""
    root = tmp_path_factory.mktemp("other")
    for i in range(8):
        sites = (4,) if i % 2 else ()
        add_volume(root, f"9.{i}", shape=(36, 40, 44), sites=sites, places=[(18, 20, 22)] * len(sites), patient=f"q{i}")
    return finish_cache(root)


def test_the_held_out_fold_comes_out_as_in_training(trained, cache, tmp_path):
    told, done = [], []
    (run,) = predict_fresh(
        trained[:1], tmp_path, FreshOptions(device="cpu", architecture=MODEL), tell=told.append,
        on_progress=lambda *counts: done.append(counts),
    )  # fmt: skip
    before = read_run(trained[0])
    assert run.predictions.uids.tolist() == before.predictions.uids.tolist()
    assert np.allclose(run.predictions.probabilities, before.predictions.probabilities, atol=1e-5)
    assert run.predictions.truth.tolist() == before.predictions.truth.tolist()
    assert np.allclose(run.candidates.lps_mm, before.candidates.lps_mm, atol=1e-2)
    assert (run.name, run.fresh, run.assigned) == ("fold0", "fold 0", before.assigned)
    assert (run.part, run.digest) == (before.part, before.digest) == ("val", cache.spec.digest)
    assert run.checkpoint == before.checkpoint == checkpoint_digest(trained[0] / "checkpoints" / "best.ckpt")
    assert "predicting fold 0 of" in told[0]
    assert done[-1] == (len(run.predictions), len(run.predictions), 0, 0)


def test_a_fold_that_was_trained_on_is_refused(trained, cache, tmp_path):
    options = {"device": "cpu", "architecture": MODEL}
    with pytest.raises(UsageError, match=r"fold0 was trained on fold 1: it held out fold 0"):
        predict_fresh(trained[:1], tmp_path, FreshOptions(fold=1, **options))
    with pytest.raises(UsageError, match=r"was trained on 8 of the 12 series in .*, such as 1\."):
        predict_fresh(trained[:1], tmp_path, FreshOptions(fold="all", **options))
    assert not list(tmp_path.iterdir())


def test_a_patient_that_was_trained_on_is_refused(trained, cache, tmp_path):
    """Another series of a patient: the UID is new, the person is not."""
    with (trained[0] / "folds.csv").open() as file:
        known = next(row["patient_key"] for row in csv.DictReader(file) if row["fold"] != "0")
    add_volume(tmp_path / "cache", "9.1", shape=(36, 40, 44), patient=known)
    add_volume(tmp_path / "cache", "9.2", shape=(36, 40, 44), patient="new")
    finish_cache(tmp_path / "cache")
    with pytest.raises(UsageError, match=r"on 1 of the 2 series in .* or on others of their patients, such as 9\.1"):
        predict_fresh(trained[:1], tmp_path / "out", FreshOptions(tmp_path / "cache", "all", "cpu", MODEL))


def test_a_cache_without_the_held_out_series_or_of_another_spec(trained, other, tmp_path):
    with pytest.raises(UsageError, match=r"none of the 4 series in fold 0 of .*fold0 is in .* give --fold all"):
        predict_fresh(trained[:1], tmp_path, FreshOptions(other.root, None, "cpu", MODEL))
    add_volume(tmp_path / "fine", "9.1", shape=(36, 40, 44), spec="rsna-head-0.5mm")
    finish_cache(tmp_path / "fine", "rsna-head-0.5mm")
    with pytest.raises(SpecMismatchError, match=r"is of spec 'rsna-head-0\.5mm'"):
        predict_fresh(trained[:1], tmp_path, FreshOptions(tmp_path / "fine", "all", "cpu", MODEL))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't be made"):
        predict_fresh(trained[:1], tmp_path / "file", FreshOptions(None, None, "cpu", MODEL))
    with pytest.raises(UsageError, match="have one name"):
        predict_fresh([trained[0], tmp_path / "x" / "fold0"], tmp_path, FreshOptions())


@pytest.mark.slow
def test_an_external_cache_from_the_command_line(trained, other, tmp_path):
    """Two folds' models on series of which neither has seen any: averaged, compared, and never over the runs' own."""
    runs = [tmp_path / root.name for root in trained]
    for root, copy in zip(trained, runs):
        shutil.copytree(root, copy)
    given = ("--fresh", "--fold", "all", "--cache", other.root, "--model", MODEL, "--device", "cpu", "--samples", 50)
    out = tmp_path / "external"
    ran = call_cli("evaluate", *runs, *given, "--cases", 0, "--out", out)
    assert ran.code == 0, ran.err
    assert f"predicting all series of {other.root} (8 series)" in ran.err
    assert ran.out.startswith("8 external series of 8 patients, 2 runs")
    assert sorted(p.name for p in (out / "predictions").iterdir()) == ["fold0", "fold1"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert [run["fresh"] for run in metrics["runs"]] == ["all series", "all series"]
    assert metrics["froc"]["any_site"]["scans"] == 8
    calibration = json.loads((out / "calibration.json").read_text())
    assert calibration["averaged"] is True
    assert [run["checkpoint"] for run in calibration["runs"]] == [
        checkpoint_digest(root / "checkpoints" / "best.ckpt") for root in runs
    ]
    page = (out / "report.html").read_text()
    assert "Predicted again: all series." in page
    assert "picked by the same held-out series" not in page
    assert "still to be done" not in page
    assert "8 external series" in page
    assert not (runs[0] / "evaluation").exists()
    # What it wrote is a run: it can be evaluated again without the model.
    again = call_cli("evaluate", out / "predictions" / "fold0", "--samples", 50, "--cases", 0, "--out", tmp_path / "o")
    assert again.code == 0, again.err
    assert again.out.startswith("8 external series")


@pytest.mark.parametrize(
    "options, words",
    [
        (("--fold", "all"), "--fold goes with --fresh"),
        (("--fresh", "--fold", "first"), "--fold first: give a number from 0, or all"),
        (("--fresh",), "there is no checkpoint"),
        (("--fresh", "--device", "gpu"), "there is no device 'gpu'"),
        (("--fresh", "--device", "cuda:99"), "there is no cuda:99"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, options, words):
    (tmp_path / "run").mkdir()
    ran = call_cli("evaluate", tmp_path / "run", *options)
    assert ran.code == 2
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1
