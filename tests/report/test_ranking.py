"""The RSNA score and the rankings of labels, against a count of all pairs."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from aneurysm.labels import LABELS
from aneurysm.report.intervals import Estimate
from aneurysm.report.ranking import rank, rank_by
from aneurysm.report.run import read_run
from tests.support.fake_runs import fake_series, write_run


def read(tmp_path, n=300, **options):
    series = fake_series(n, **options)
    return read_run(write_run(tmp_path / "run", series, n_folds=1)).predictions


def proportion_confint(positives, n):
    """Wilson's, as SciPy has it."""
    found = binomtest(round(positives), n).proportion_ci(method="wilson")
    return found.low, found.high


def counted_auc(positive, scores):
    """Pairs of a positive and a negative in the right order, ties half: the definition."""
    right = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    return sum(right) / len(right)


def test_the_rsna_score_equals_an_independent_count(tmp_path):
    p = read(tmp_path)
    found = rank(p)
    weighted = [
        (13 if label == "Aneurysm Present" else 1) * counted_auc(p.truth[:, i] == 1, p.probabilities[:, i])
        for i, label in enumerate(LABELS)
    ]
    # The competition's own words: mean of the columns' AUCs, weighted 13 for present and 1 for each site.
    assert found.score.value == pytest.approx(sum(weighted) / 26, abs=1e-9)
    assert found.score.low < found.score.value < found.score.high
    assert found.left_out == ()


def test_micro_ranks_all_pairs_of_series_and_site(tmp_path):
    p = read(tmp_path, 120, seed=2)
    found = rank(p)
    expected = counted_auc((p.truth[:, :13] == 1).ravel(), p.probabilities[:, :13].ravel())
    assert found.micro_auc.value == pytest.approx(expected)
    macro = np.mean([x.auc.value for x in found.labels[:13] if x.auc.value is not None])
    assert found.site_auc.value == pytest.approx(macro)


def test_labels_of_one_class_are_in_no_mean(tmp_path):
    p = read(tmp_path, 200)
    p.truth[:, 7] = 0
    p.truth[:, 8] = 255
    found = rank(p)
    assert [x.label for x in found.left_out] == [LABELS[7], LABELS[8]]
    assert found.labels[7].auc == Estimate(None)
    assert found.labels[8].prevalence == Estimate(None)
    others = [x.auc.value for x in found.labels[:13] if not x.one_class]
    assert len(others) == 11
    assert found.site_auc.value == pytest.approx(np.mean(others))


def test_unknown_labels_leave_a_series_out_of_that_label_only(tmp_path):
    p = read(tmp_path, 200)
    p.truth[:50, 13] = 255
    found = rank(p).labels
    assert (found[13].n, found[0].n) == (150, 200)
    assert found[13].auc.value == pytest.approx(counted_auc(p.truth[50:, 13] == 1, p.probabilities[50:, 13]))


def test_groups_are_ranked_by_themselves(tmp_path):
    p = read(tmp_path, 300)
    groups = rank_by(p, p.modalities)
    assert set(groups) == set(p.modalities.tolist())
    of = p.modalities == "CTA"
    assert groups["CTA"].n == of.sum()
    assert groups["CTA"].present_auc.value == pytest.approx(counted_auc(p.truth[of, 13] == 1, p.probabilities[of, 13]))


def test_no_interval_from_fewer_than_five_patients_with_a_positive_site(tmp_path):
    p = read(tmp_path, 200)
    p.truth[:, :13] = 0
    p = replace(p, patients=p.uids)
    for n in (4, 5):
        p.truth[range(n), range(n)] = 1
        found = rank(p)
        values = (found.score, found.site_auc, found.site_average_precision, found.micro_auc)
        assert all(x.value is not None for x in values)
        assert [x.low is None for x in values] == [n < 5] * 4


def test_the_prevalence_has_an_interval(tmp_path):
    p = read(tmp_path, 400)
    p = replace(p, patients=p.uids)
    found = rank(p).labels[13].prevalence
    share = p.positive(13).mean()
    assert found.value == pytest.approx(share)
    assert (found.low, found.high) == pytest.approx(proportion_confint(share * 400, 400), abs=1e-6)
