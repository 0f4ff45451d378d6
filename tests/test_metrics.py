"""The competition's score against the definition of AUC, and labels that have none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS
from aneurysm.metrics import score_series


def auc(true: np.ndarray, scores: np.ndarray) -> float:
    """How often a positive stands above a negative, a draw being half: Mann and Whitney's U."""
    above = np.sign(scores[true == 1][:, None] - scores[true == 0][None, :])
    return float((above + 1).mean() / 2)


def average_precision(true: np.ndarray, scores: np.ndarray) -> float:
    """The mean over positives of the precision among all that stand as high or higher."""
    return float(np.mean([true[scores >= s].mean() for s in scores[true == 1]]))


def predictions(seed: int = 0, n: int = 60, *, steps: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Labels with both classes in each column, and scores with draws."""
    random = np.random.default_rng(seed)
    true = (random.random((n, 14)) < 0.3).astype(np.uint8)
    true[0], true[1] = 0, 1
    return true, np.round((true * 0.3 + random.random((n, 14))) * steps) / steps


@settings(deadline=None, max_examples=20)  # the first example pays for importing scikit-learn
@given(st.integers(0, 1000))
def test_the_score_is_the_competitions(seed):
    true, scores = predictions(seed)
    found = score_series(true, scores)
    aucs = [auc(true[:, i], scores[:, i]) for i in range(14)]
    assert [s.auc for s in found.labels] == pytest.approx(aucs)
    assert found.score == pytest.approx(np.average(aucs, weights=[1] * 13 + [13]))
    assert found.present_auc == pytest.approx(aucs[13])
    assert found.mean_site_auc == pytest.approx(np.mean(aucs[:13]))


def test_average_precision_is_its_definition():
    true, scores = predictions()
    found = [s.average_precision for s in score_series(true, scores).labels]
    assert found == pytest.approx([average_precision(true[:, i], scores[:, i]) for i in range(14)])


def test_a_series_whose_label_is_not_known_is_left_out_of_that_label():
    true, scores = predictions()
    true[5:20, 3] = 255
    found = score_series(true, scores)
    keep = true[:, 3] != 255
    assert found.labels[3].n == 45
    assert found.labels[3].auc == pytest.approx(auc(true[keep, 3], scores[keep, 3]))
    assert found.labels[4].n == 60


def test_a_site_of_one_class_is_left_out_and_said_so():
    true, scores = predictions()
    true[:, 7], true[:, 2] = 0, 1
    true[:, 9] = 255
    found = score_series(true, scores)
    assert [s.label for s in found.left_out] == [LABELS[2], LABELS[7], LABELS[9]]
    sites = [auc(true[:, i], scores[:, i]) for i in range(13) if i not in (2, 7, 9)]
    assert found.mean_site_auc == pytest.approx(np.mean(sites))
    assert found.score == pytest.approx(0.5 * (auc(true[:, 13], scores[:, 13]) + np.mean(sites)))
    words = found.summary()
    assert "of 10 of 13 sites" in words
    assert f"left out, because all that is known is of one class: {LABELS[2]} (60 of 60 positive), " in words
    assert f"{LABELS[7]} (0 of 60 positive), {LABELS[9]} (0 of 0 positive)" in words


def test_nothing_is_said_of_left_out_labels_where_there_are_none():
    assert "left out" not in score_series(*predictions()).summary()


def test_without_an_auc_of_present_there_is_no_score():
    true, scores = predictions()
    true[:, 13] = 1
    found = score_series(true, scores)
    assert found.score is None
    assert found.mean_site_auc is not None
    assert found.summary().startswith("score n/a, AUC of present n/a, mean AUC of 13 of 13 sites 0.")


def test_one_series_has_no_score_and_does_no_harm():
    found = score_series(np.zeros((1, 14)), np.zeros((1, 14)))
    assert (found.score, found.mean_site_auc, len(found.left_out)) == (None, None, 14)


def test_each_modality_is_scored_by_itself():
    true, scores = predictions(n=80)
    modalities = ["CTA", "MRA"] * 40
    found = score_series(true, scores, modalities)
    assert list(found.by_modality) == ["CTA", "MRA"]
    assert found.by_modality["MRA"] == score_series(true[1::2], scores[1::2])
    assert found.score == score_series(true, scores).score


def test_only_the_order_of_predictions_counts():
    true, scores = predictions()
    assert score_series(true, scores * 30 - 7).score == pytest.approx(score_series(true, scores).score)


@pytest.mark.parametrize(
    "spoil, words",
    [
        pytest.param(lambda t, s: (t[:, :13], s[:, :13]), r"expected \(n, 14\)", id="13 labels"),
        pytest.param(lambda t, s: (t, s[:5]), r"\(60, 14\) and predictions of \(5, 14\)", id="fewer predictions"),
        pytest.param(lambda t, s: (t + 1, s), "a label is 2", id="label 2"),
        pytest.param(lambda t, s: (t, np.where(s > 1, np.nan, s)), "the prediction of '.*' in row .* is nan", id="NaN"),
        pytest.param(lambda t, s: (t, s, ["CTA"]), "1 modalities for 60 series", id="modalities"),
    ],
)
def test_what_can_not_be_scored_is_refused(spoil, words):
    with pytest.raises(UsageError, match=words):
        score_series(*spoil(*predictions()))
