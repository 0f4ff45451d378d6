"""Prevalence, phi and points against known values: published intervals, correlations, tables counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aneurysm.labels import LABELS, SITES
from aneurysm.rawdata.tables import Localizer
from aneurysm.report.eda_labels import (
    LabelledSeries,
    MarkedSeries,
    co_occurrence,
    count_points,
    phi_coefficient,
    prevalence,
)

PRESENT = len(LABELS) - 1


def labels(*positive: tuple[int, ...]) -> np.ndarray:
    """One row a series: the sites that are positive, and with any of them the last label."""
    rows = np.zeros((len(positive), len(LABELS)), np.uint8)
    for row, sites in zip(rows, positive, strict=True):
        row[list(sites)] = 1
        row[PRESENT] = bool(sites)
    return rows


def series(rows: np.ndarray, modalities: list[str], patients: list[int]) -> LabelledSeries:
    return LabelledSeries(np.array(modalities), np.array(patients), rows)


def test_a_share_has_wilson_s_interval():
    """Newcombe (Statistics in Medicine 17:857, 1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for positive, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                   (1, 29, 0.0061, 0.1718)):  # fmt: skip
        rows = labels(*[(0,)] * positive, *[()] * (n - positive))
        found = prevalence(series(rows, ["CTA"] * n, list(range(n))), "CTA")[0]
        assert (found.positive, found.n) == (positive, n)
        assert found.share.value == pytest.approx(positive / n)
        assert (found.share.low, found.share.high) == pytest.approx((low, high), abs=5e-5)


def test_by_modality_and_in_all():
    rows = labels((6,), (6, 11), (), (), (11,), ())
    all_series = series(rows, ["CTA", "CTA", "CTA", "MRA", "MRA", "MRA"], list(range(6)))
    counts = {m: [p.positive for p in prevalence(all_series, m)] for m in ("CTA", "MRA", None)}
    assert [counts[m][6] for m in counts] == [2, 0, 2]
    assert [counts[m][11] for m in counts] == [1, 1, 2]
    assert [counts[m][PRESENT] for m in counts] == [2, 1, 3]
    assert [prevalence(all_series, m)[0].n for m in counts] == [3, 3, 6]


def test_series_of_few_patients_have_no_interval_and_alike_ones_a_wider_one():
    rows = labels(*[(0,)] * 4, *[()] * 4)
    few = prevalence(series(rows, ["CTA"] * 8, [0, 0, 1, 1, 2, 2, 3, 3]), None)[0].share
    assert (few.value, few.low, few.high) == (0.5, None, None)
    rows = labels(*[(0,)] * 40, *[()] * 40)
    each, pairs = (prevalence(series(rows, ["CTA"] * 80, own), None)[0].share for own in
                   (list(range(80)), [i // 4 for i in range(80)]))  # fmt: skip
    assert pairs.high - pairs.low > 1.5 * (each.high - each.low)


def test_phi_of_a_known_table():
    """Of 100, 30 have both, 10 the first alone, 20 the second alone, 40 neither: (30 * 40 - 10 * 20) / the root."""
    assert phi_coefficient(30, 40, 50, 100) == pytest.approx(1000 / np.sqrt(6_000_000))
    assert phi_coefficient(5, 5, 5, 20) == pytest.approx(1)
    assert phi_coefficient(0, 10, 10, 20) == pytest.approx(-1)
    assert phi_coefficient(1, 2, 5, 10) == pytest.approx(0)
    for both, first, second in ((0, 0, 4), (4, 10, 4), (0, 0, 0)):
        assert np.isnan(phi_coefficient(both, first, second, 10))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_phi_is_the_correlation(pairs):
    first, second = np.array(pairs, float).T
    found = phi_coefficient(int(first @ second), int(first.sum()), int(second.sum()), len(pairs))
    if first.std() == 0 or second.std() == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-12)


def test_sites_that_go_together():
    found = co_occurrence(labels((0, 1), (0, 1), (0,), (6,), (), (), (), ()))
    assert found.n == 8
    assert found.counts[0, 1] == found.counts[1, 0] == 2
    assert found.counts.diagonal().tolist() == [3, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert found.phi[0, 1] == pytest.approx(10 / np.sqrt(180))
    assert found.phi[0, 6] == pytest.approx(-3 / np.sqrt(3 * 5 * 1 * 7))
    assert np.isnan(found.phi[0, 2])


def localizer(site: str, sop: str = "1.1", x: float = 5.0, problem: str = "") -> Localizer:
    return Localizer(2, "1.2", sop, site, x, 7.0, problem=problem)


def test_points_are_counted_with_their_faults():
    left, right = SITES[0], SITES[1]
    found = count_points(
        [
            MarkedSeries("CTA", labels((0, 1))[0], (localizer(left), localizer(right)), 2),  # one place, two sites
            MarkedSeries("CTA", labels((0,))[0], (localizer(left), localizer(left, "1.9", 8.0)), 1),
            MarkedSeries("CTA", labels((0,))[0], (), 0),
            MarkedSeries("MRA", labels(())[0], (localizer(right),), 1),
            MarkedSeries("MRA", labels((0,))[0], tuple(localizer(left, x=float(x)) for x in range(7)), 7),
            MarkedSeries("MRA", None, (localizer("Elbow", problem="none of the 13 sites"),), None),
        ]
    )
    assert found.rows == 13
    assert found.series == {"CTA": [1, 0, 2, 0, 0, 0], "MRA": [0, 2, 0, 0, 0, 1]}
    assert (found.malformed, found.without_image, found.doubled) == (1, 1, 1)
    assert (found.positive_without, found.negative_with, found.unlabelled_site) == (1, 1, 1)
