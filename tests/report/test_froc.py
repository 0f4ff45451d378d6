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


def test_a_place_near_another_lesion_is_matched_before_places_are_thinned_out():
    """Two lesions 4 mm apart, each named at its place: the second was once taken for the first one's place again."""
    where = localisation([(0, 2, 0.9, 0), (0, 5, 0.8, 4)], [(0, 2, 0, 3), (0, 5, 4, 3)])
    for same_site in (False, True):
        assert match(where, 5.0, same_site=same_site).tolist() == [0, 1]


def test_a_candidate_gives_way_to_a_lesion_that_it_finds_as_well():
    """The first lies nearest to lesion 1, and is of the site of lesion 0; the second can find lesion 1 alone."""
    where = localisation([(0, 2, 0.9, 3), (0, 5, 0.8, 7)], [(0, 2, 0, 3), (0, 5, 4, 3)])
    assert match(where, 5.0, same_site=True).tolist() == [0, 1]
    # The lesion that is new with the second candidate is 0, which the first one now finds.
    assert match(where, 5.0, same_site=False).tolist() == [1, 0]


def test_a_chain_of_candidates_gives_way():
    lesions = [(0, 0, x, 1) for x in (0, 8, 16)]
    candidates = [(0, 0, 0.9, 12), (0, 0, 0.8, 4), (0, 0, 0.7, 16), (0, 0, 0.6, 16)]
    where = localisation(candidates, lesions)
    found = match(where, 5.0, same_site=False)
    assert sorted(found.tolist()) == [AGAIN, 0, 1, 2]
    assert found[3] == AGAIN


def most_pairs(where, n, radius_mm, same_site):
    """The most lesions that the n most probable candidates can find, by trying all ways."""
    chosen = np.argsort(-where.candidate_probability, kind="stable")[:n].tolist()

    def best(rest, taken):
        if not rest:
            return 0
        c, *rest = rest
        most = best(rest, taken)
        for lesion in range(len(where.lesion_scan)):
            near = abs(where.lesion_lps_mm[lesion, 0] - where.candidate_lps_mm[c, 0]) <= radius_mm
            ours = where.lesion_scan[lesion] == where.candidate_scan[c]
            site = not same_site or where.lesion_site[lesion] == where.candidate_site[c]
            if near and ours and site and lesion not in taken:
                most = max(most, 1 + best(rest, taken | {lesion}))
        return most

    return best(chosen, frozenset())


def test_anywhere_is_never_below_with_the_site_right():
    rng = np.random.default_rng(0)
    for _ in range(60):
        candidates = [(rng.integers(2), rng.integers(3), rng.random(), rng.uniform(0, 24)) for _ in range(7)]
        lesions = [(rng.integers(2), rng.integers(3), rng.uniform(0, 24), 3) for _ in range(4)]
        where = localisation(candidates, lesions, scans=2)
        order = np.argsort(-where.candidate_probability)
        anywhere, right = (match(where, 5.0, same_site=same)[order] for same in (False, True))
        for n in range(8):
            hits = [(found[:n] >= 0).sum() for found in (anywhere, right)]
            assert hits == [most_pairs(where, n, 5.0, same) for same in (False, True)]
            assert hits[0] >= hits[1]
            assert (anywhere[:n] == FALSE).sum() <= (right[:n] == FALSE).sum()
        hit = anywhere[anywhere >= 0]
        assert len(set(hit.tolist())) == len(hit)
