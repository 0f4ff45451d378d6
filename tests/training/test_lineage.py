"""What the weights that a run begins with have learnt from is kept with the run, and told with its scores."""

from __future__ import annotations

import shutil

import pytest

from aneurysm.errors import DataError, UsageError
from aneurysm.report.evaluate import evaluate
from aneurysm.report.evaluation import EvaluateOptions
from aneurysm.report.page import render
from aneurysm.report.repredict import FreshOptions, predict_fresh
from aneurysm.report.results import metrics_table
from aneurysm.report.run import read_run
from aneurysm.training.fit import fit
from aneurysm.training.lineage import Lineage, read_lineage, write_lineage
from aneurysm.training.run_folder import RunFolder
from tests.support.train_runs import quick

pytestmark = pytest.mark.timeout(120)
SEEN = r"in whose training folds are the patients of 4 of the 4 held-out series: scores of these are too good"
NONE = "which was trained on none of the held-out patients"


def short(cache, fold: int, init=None):
    return quick(cache, fold=fold, epochs=1, steps_per_epoch=1, **({} if init is None else {"init": str(init)}))


@pytest.fixture(scope="module")
def runs(train_cache, tmp_path_factory):
    """Fold 0, and fold 1 that began from it."""
    root = tmp_path_factory.mktemp("runs")
    one, two = RunFolder(root / "one"), RunFolder(root / "two")
    fit(short(train_cache, 0), one)
    fit(short(train_cache, 1, one.best), two)
    return one, two


def test_a_run_that_began_from_another_fold_s_says_so_at_once_and_on_the_page(runs):
    one, two = runs
    assert read_run(one.root).remark == ""
    assert f"WARNING the weights began from {one.best}, {SEEN}" in two.log.read_text()
    found = evaluate([two.root], options=EvaluateOptions(samples=40))
    page = render(found, [], {})
    assert f"two: the weights began from {one.best}, {SEEN}." in page
    assert "but for what is said above" in page
    assert SEEN in metrics_table(found)["runs"][0]["remark"]
    assert "but for what is said above" not in render(evaluate([one.root], options=EvaluateOptions(samples=40)), [], {})


def test_the_same_fold_is_not_learnt_from_but_for_what_came_before(runs, train_cache, tmp_path):
    one, two = runs
    again, third = RunFolder(tmp_path / "again"), RunFolder(tmp_path / "third")
    fit(short(train_cache, 0, one.last), again)
    assert NONE in read_run(again.root).remark
    # Run two held fold 1 out, too, but began from what had learnt it.
    fit(short(train_cache, 1, two.best), third)
    assert SEEN in read_run(third.root).remark


def test_of_a_checkpoint_that_was_carried_off_nothing_is_known(runs, train_cache, tmp_path):
    carried = tmp_path / "carried.ckpt"
    shutil.copyfile(runs[0].best, carried)
    shutil.copyfile(runs[0].folds, tmp_path.parent / "folds.csv")  # somebody's, and by chance where a run's would be
    folder = RunFolder(tmp_path / "run")
    fit(short(train_cache, 1, carried), folder)
    assert "is not known, and scores may be too good" in read_run(folder.root).remark


def test_predictions_made_anew_keep_the_remark_and_no_series_that_came_before_is_external(runs, tmp_path):
    options = FreshOptions(device="cpu", architecture="tests.support.tiny:classifier")
    (run,) = predict_fresh([runs[1].root], tmp_path / "out", options)
    assert SEEN in run.remark
    options = FreshOptions(fold="all", device="cpu", architecture="tests.support.tiny:classifier")
    # Its own training folds have 8 of them.
    with pytest.raises(UsageError, match="was trained on 12 of the 12 series"):
        predict_fresh([runs[1].root], tmp_path / "all", options)


def test_a_patient_is_known_by_key_or_by_a_series_in_both_caches():
    lineage = Lineage("x.ckpt", {"a1": "A", "b1": "B", "c1": ""}, known=True)
    same_keys = {"a2": "A", "d1": "D", "c1": "", "e1": ""}
    assert lineage.seen(same_keys) == {"a2", "c1"}
    other_keys = {"a1": "X", "a2": "X", "d1": "Y"}
    assert lineage.seen(other_keys) == {"a1", "a2"}
    assert lineage.describe(["a2", "d1"], other_keys).endswith(
        "1 of the 2 held-out series: scores of these are too good"
    )
    assert NONE in lineage.describe(["d1"], other_keys)


def test_a_damaged_file_is_told(tmp_path):
    path = tmp_path / "init.json"
    write_lineage(path, Lineage("x.ckpt", {"1.2": "k"}, known=False))
    assert read_lineage(path) == Lineage("x.ckpt", {"1.2": "k"}, known=False)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DataError, match=r"init\.json is damaged"):
        read_lineage(path)
