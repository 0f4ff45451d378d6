"""Candidates against lesions, in cases worked by hand."""

import numpy as np
import pytest

from aneurysm.report.bootstrap import patient_weights
from aneurysm.report.froc import AGAIN, FALSE, Localisation, froc, match


def localisation(candidates, lesions, scans=4):
    """Candidates (scan, site, probability, x) and lesions (scan, site, x, diameter) on a line."""
    c = np.array(candidates, float).reshape(-1, 4)
    m = np.array(lesions, float).reshape(-1, 4)

    def line(x):
        return np.stack([x, np.zeros_like(x), np.zeros_like(x)], axis=1)

    return Localisation(
        np.arange(scans), c[:, 0].astype(int), c[:, 1].astype(int), c[:, 2], line(c[:, 3]), m[:, 0].astype(int),
        m[:, 1].astype(int), line(m[:, 2]), m[:, 3],
    )  # fmt: skip


LESIONS = [(0, 2, 0, 2.5), (0, 5, 20, 8), (1, 6, 0, np.nan)]
CANDIDATES = [
    (0, 2, 0.9, 1),  # finds the first lesion
    (0, 2, 0.8, -2),  # at the same again
    (0, 2, 0.7, 21),  # finds the second, under another site
    (1, 6, 0.6, 5.1),  # too far
    (1, 6, 0.5, -5),  # finds the third, just near enough
    (2, 0, 0.65, 0),  # no lesion in this scan
]


def test_which_candidate_finds_what():
    where = localisation(CANDIDATES, LESIONS)
    assert match(where, 5.0, same_site=False).tolist() == [0, AGAIN, 1, FALSE, 2, FALSE]
    assert match(where, 5.0, same_site=True).tolist() == [0, AGAIN, FALSE, FALSE, 2, FALSE]
    assert match(where, 4.0, same_site=False).tolist() == [0, AGAIN, 1, FALSE, FALSE, FALSE]


def test_a_lesion_is_found_once_and_the_nearest_first():
    where = localisation([(0, 0, 0.9, 4), (0, 0, 0.8, 4), (0, 0, 0.7, 4)], [(0, 0, 0, 1), (0, 0, 6, 1)])
    assert match(where, 5.0, same_site=False).tolist() == [1, 0, AGAIN]


def test_the_curve_by_hand():
    where = localisation(CANDIDATES, LESIONS)
    weights = patient_weights(np.arange(4).astype(str), 100, 0)
    found = froc(where, weights, 5.0)
    # By falling probability: hit, hit, false (0.65), false (0.6), hit; over 4 scans and 3 lesions.
    np.testing.assert_allclose(found.false_positives, [0, 0, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(found.sensitivity, [1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])
    assert [found.at[r].value for r in (0.25, 0.5, 1, 2, 4, 8)] == pytest.approx([2 / 3, 1, 1, 1, 1, 1])
    assert found.mean.value == pytest.approx(17 / 18)
    assert found.threshold == 0.5
    assert [(g.name, g.n_lesions, g.sensitivity.value) for g in found.by_size] == [
        ("under 3 mm", 1, 1.0), ("7 mm and more", 1, 1.0), ("size not known", 1, 1.0),
    ]  # fmt: skip
    assert [g.name for g in found.by_site] == [
        "Left Supraclinoid Internal Carotid Artery", "Right Middle Cerebral Artery", "Anterior Communicating Artery",
    ]  # fmt: skip


def test_equal_probabilities_are_one_point_of_the_curve():
    where = localisation([(0, 0, 0.5, 0), (1, 0, 0.5, 0), (2, 0, 0.5, 0)], [(2, 0, 0, 1)], scans=3)
    found = froc(where, patient_weights(np.arange(3).astype(str), 50, 0), 5.0)
    np.testing.assert_allclose((found.false_positives, found.sensitivity), ([2 / 3], [1]))
    assert found.at[0.5].value == 0
    assert found.at[1.0].value == 1


def test_no_candidates_find_nothing():
    found = froc(localisation([], LESIONS), patient_weights(np.arange(4).astype(str), 50, 0), 5.0)
    assert found.mean.value == 0
    assert found.by_size[0].sensitivity.value == 0


def test_sites_and_sizes_are_counted_at_one_false_positive_a_scan():
    # Two false ones a scan come before the hit: at one per scan it is not found.
    false = [(s, 0, 0.9 - i / 100 - s / 1000, 50 + 20 * i) for s in range(2) for i in range(2)]
    where = localisation([*false, (0, 0, 0.1, 0)], [(0, 0, 0, 4)], scans=2)
    found = froc(where, patient_weights(np.arange(2).astype(str), 50, 0), 5.0)
    assert found.at[1.0].value == 0
    assert found.at[2.0].value == 1
    assert found.by_site[0].sensitivity.value == 0


def test_one_false_place_named_for_several_sites_is_one_false_positive():
    sites = [(0, site, 0.9 - site / 100, 50 + site / 10) for site in range(13)]
    where = localisation([*sites, (0, 2, 0.5, 0), (1, 2, 0.4, 50)], [(0, 2, 0, 4)], scans=2)
    found = froc(where, patient_weights(np.arange(2).astype(str), 50, 0), 5.0)
    np.testing.assert_allclose(found.false_positives, [0.5, 0.5, 1.0])
    assert found.at[0.5].value == 1
    # With the site asked for, each is an answer of its own.
    assert froc(where, patient_weights(np.arange(2).astype(str), 50, 0), 5.0, same_site=True).at[4.0].value == 0


@pytest.mark.parametrize("n", [4, 5])
def test_no_interval_from_fewer_than_five_lesions(n):
    where = localisation([(i, 2, 0.9, 0) for i in range(0, n, 2)], [(i, 2, 0, 4) for i in range(n)], scans=20)
    found = froc(where, patient_weights(np.arange(20).astype(str), 200, 0), 5.0)
    assert (found.at[1.0].low is None, found.mean.low is None, found.band.size == 0) == (n < 5,) * 3
