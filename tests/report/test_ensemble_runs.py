"""Several runs: folds put together, models averaged, and what must not be mixed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from aneurysm.errors import DataError, SpecMismatchError
from aneurysm.inference.calibration import read_calibration
from aneurysm.labels import LABELS
from aneurysm.prediction_table import candidate_entry
from aneurysm.probability import logit, sigmoid
from aneurysm.report.ensemble_runs import combine, combine_candidates, group_runs
from aneurysm.report.evaluate import evaluate
from aneurysm.report.evaluation import EvaluateOptions
from aneurysm.report.results import calibration_json
from aneurysm.report.run import read_run
from tests.support.fake_runs import change_rows, fake_series, of_cache, say, write_run
from tests.support.noise_cache import add_volume, finish_cache


def test_folds_are_put_together_out_of_fold(tmp_path):
    series = fake_series(100)
    runs = [read_run(write_run(tmp_path / f"{k}", series, fold=k, n_folds=3)) for k in range(3)]
    groups = group_runs(runs)
    assert [len(g) for g in groups] == [1, 1, 1]
    found = combine(groups)
    assert found.uids.tolist() == sorted(series.uids)
    for run in runs:
        at = np.searchsorted(found.uids, run.predictions.uids)
        np.testing.assert_array_equal(found.probabilities[at], run.predictions.probabilities)
        np.testing.assert_array_equal(found.truth[at], run.predictions.truth)
        np.testing.assert_array_equal(found.folds[at], run.predictions.folds)


def test_runs_of_one_fold_are_averaged(tmp_path):
    series = fake_series(60)
    runs = [read_run(write_run(tmp_path / f"{s}", series, fold=0, n_folds=2, seed=s)) for s in range(3)]
    groups = group_runs(runs)
    assert [len(g) for g in groups] == [3]
    given = np.stack([r.predictions.probabilities for r in runs])
    np.testing.assert_allclose(combine(groups).probabilities, sigmoid(logit(given).mean(axis=0)))
    ranked = combine(groups, "ranks").probabilities
    n = given.shape[1]
    expected = np.mean([[(g < g[i]).sum() + 0.5 for i in range(n)] for g in given[:, :, 13]], axis=0) / n
    np.testing.assert_allclose(ranked[:, 13], expected)


def test_the_average_is_compared_with_each_run(tmp_path):
    series = fake_series(250)
    roots = [write_run(tmp_path / f"{s}", series, n_folds=1, seed=s) for s in range(2)]
    found = evaluate(roots, options=EvaluateOptions(samples=100))
    assert found.ensembled
    for result in found.runs:
        assert result.gain.value == pytest.approx(found.ranking.score.value - result.ranking.score.value)
        # Each run has noise of its own, which averaging takes away.
        assert result.gain.low > 0
    assert evaluate(roots[:1], options=EvaluateOptions(samples=100)).runs[0].gain is None


def test_candidates_of_several_runs_become_one_where_they_meet(tmp_path):
    series = fake_series(20)
    roots = [write_run(tmp_path / f"{s}", series, n_folds=1, seed=s) for s in range(2)]
    rows = (
        [("Basilar Tip", 0.8, 0), ("Left Anterior Cerebral Artery", 0.5, 0)],
        [("Basilar Tip", 0.4, 3), ("Basilar Tip", 0.2, 40)],
    )
    for root, found in zip(roots, rows):
        entries = [candidate_entry(site, p, (x, 0, 0), (0, 0, 0)) for site, p, x in found]
        change_rows(
            root, lambda row, entries=entries: replace(row, candidates=entries * (row.series_uid == series.uids[0]))
        )
    groups = group_runs([read_run(root) for root in roots])
    merged = combine_candidates(groups, 5.0)
    assert merged.sites.tolist() == [11, 7, 11]
    np.testing.assert_allclose(merged.probabilities, [0.6, 0.25, 0.1])
    np.testing.assert_allclose(merged.lps_mm[:, 0], [0, 0, 40])
    change_rows(roots[1], lambda row: replace(row, candidates=None))
    assert combine_candidates(group_runs([read_run(root) for root in roots]), 5.0) is None


def both(tmp_path, **second):
    series = fake_series(60)
    write_run(tmp_path / "a", series, fold=0, n_folds=2)
    write_run(tmp_path / "b", second.pop("series", series), **({"fold": 0, "n_folds": 2, "seed": 1} | second))
    return [tmp_path / "a", tmp_path / "b"]


def other_folds(tmp_path):
    return both(tmp_path, n_folds=3, fold=1)


def some_in_common(tmp_path):
    roots = both(tmp_path)
    path = roots[1] / "predictions_val.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-5]) + "\n")
    return roots


def other_labels(tmp_path):
    series = fake_series(60)
    series.labels[:, 3] = 1 - series.labels[:, 3]
    return both(tmp_path, series=series)


def named_twice(tmp_path):
    return both(tmp_path)[:1] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_folds, "were dealt into other folds"),
        (some_in_common, "both predicted .* but not the same series"),
        (other_labels, "know other labels of"),
        (named_twice, "named twice"),
    ],
    ids=["other folds", "some series in common", "other labels", "named twice"],
)
def test_runs_that_don_t_go_together(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        group_runs([read_run(root) for root in make(tmp_path)])


def test_runs_of_other_specs(tmp_path):
    caches = []
    for spec in ("rsna-1mm", "rsna-head-0.5mm"):
        (tmp_path / spec).mkdir()
        for i in range(6):
            add_volume(tmp_path / spec, f"1.{i}", sites=(i,) if i % 2 else (), spec=spec, patient=f"p{i}")
        caches.append(finish_cache(tmp_path / spec, spec))
    roots = [
        write_run(tmp_path / f"run{i}", of_cache(cache), n_folds=1, seed=i, cache=cache.root)
        for i, cache in enumerate(caches)
    ]
    with pytest.raises(SpecMismatchError, match=r"different specs: .*'rsna-1mm' .*'rsna-head-0.5mm'"):
        evaluate(roots, options=EvaluateOptions(samples=50))


def test_runs_say_themselves_of_which_spec_they_are(tmp_path):
    """Where one cache is gone, or another is named, nothing else would tell."""
    add_volume(tmp_path / "cache", "1.1", patient="p")
    add_volume(tmp_path / "cache", "1.2", sites=(4,), patient="q")
    cache = finish_cache(tmp_path / "cache")
    fitting, other = cache.spec.digest, "0123456789abcdef"
    ours = say(write_run(tmp_path / "a", of_cache(cache), n_folds=1), digest=fitting)
    theirs = say(write_run(tmp_path / "b", of_cache(cache), n_folds=1, seed=1), digest=other)
    with pytest.raises(SpecMismatchError, match=rf"different specs: .*a of digest {fitting}, .*b of {other}"):
        group_runs([read_run(root) for root in (ours, theirs)])
    with pytest.raises(SpecMismatchError, match=rf"cache is of spec 'rsna-1mm' .*are of a cache of digest {other}"):
        evaluate([theirs], options=EvaluateOptions(samples=50, cache=cache.root))
    alone = evaluate([theirs], options=EvaluateOptions(samples=50))
    assert alone.cache is None
    assert json.loads(calibration_json(alone))["digest"] == other


def saturated(root, scale, shift):
    """Make a run's answers as sure as a network's: many beyond what float32 or a clip of 1e-6 tells from 0 and 1."""

    def surer(row):
        return replace(
            row, probabilities={k: float(sigmoid(scale * logit(p) + shift)) for k, p in row.probabilities.items()}
        )

    return change_rows(root, surer)


def test_two_identical_runs_averaged_are_each_of_them(tmp_path):
    series = fake_series(200)
    roots = [saturated(write_run(tmp_path / name, series, n_folds=1), 12, -30) for name in "ab"]
    alone, together = (evaluate(given, options=EvaluateOptions(samples=50)) for given in (roots[:1], roots))
    given = alone.predictions.probabilities
    assert (given < 1e-6).mean() > 0.3
    np.testing.assert_array_equal(together.predictions.probabilities, given)
    assert together.ranking.score.value == alone.ranking.score.value
    assert together.runs[0].gain.value == 0
    temperatures = [[label.temperature for label in e.calibration.labels] for e in (alone, together)]
    assert temperatures[0] == temperatures[1]


def test_the_calibrated_threshold_decides_about_predictions_as_the_threshold_did(tmp_path):
    """`predict` gives the threshold's own series a probability that reaches the calibrated threshold, to the bit."""
    root = saturated(write_run(tmp_path / "a", fake_series(200), n_folds=1), 4, 0)
    (root / "checkpoints").mkdir()
    (root / "checkpoints" / "best.ckpt").write_text("weights")
    found = evaluate([root], options=EvaluateOptions(samples=50))
    (tmp_path / "calibration.json").write_text(calibration_json(found))
    content = json.loads((tmp_path / "calibration.json").read_text())["labels"]
    given = found.predictions.probabilities
    calibrated = read_calibration(tmp_path / "calibration.json").calibrated(given)
    fitted = [i for i, name in enumerate(LABELS) if content[name]["temperature"] and content[name]["threshold"]]
    assert fitted
    for i in fitted:
        thresholds = content[LABELS[i]]
        np.testing.assert_array_equal(
            calibrated[:, i] >= thresholds["calibrated_threshold"], given[:, i] >= thresholds["threshold"]
        )
