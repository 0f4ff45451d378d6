"""How measures of series spread, and which matrices there are: known answers."""

from __future__ import annotations

import numpy as np
import pytest

from aneurysm.precaching.header_facts import HeaderFacts
from aneurysm.report.eda_ages import age_table
from aneurysm.report.eda_geometry import MEASURES, matrix_counts, measured, spread
from aneurysm.report.eda_plots import age_plot, histogram
from aneurysm.report.plot_style import svg_text


def facts(shape=(10, 512, 400), spacing=(2.5, 0.5, 0.4), **rest) -> HeaderFacts:
    return HeaderFacts("1.2", shape=shape, spacing_mm=spacing, **rest)


def test_each_measure_takes_what_it_says():
    one = facts(length_mm=22.5, thickness_mm=3.0)
    values = {m.name: measured(m, [one]).tolist() for m in MEASURES}
    assert values == {
        "slice-distance": [2.5], "thickness": [3.0], "pixel": [0.5], "field": [256.0], "length": [22.5],
        "slices": [10.0], "matrix": [512.0],
    }  # fmt: skip


def test_what_is_not_given_is_left_out():
    (thickness,) = (m for m in MEASURES if m.name == "thickness")
    values = measured(thickness, [facts(thickness_mm=1.0), facts(), facts(thickness_mm=3.0)])
    assert values.tolist() == [1.0, 3.0]
    assert spread(measured(thickness, [facts()])) is None


def test_a_spread_has_known_quantiles():
    found = spread(np.arange(1.0, 102.0))
    assert found is not None
    assert (found.n, found.quantiles) == (101, pytest.approx((1, 6, 51, 96, 101)))


def test_the_commonest_matrices_and_the_rest():
    many = [facts(shape=(5, 512, 512))] * 3 + [facts(shape=(5, 100 + k, 64)) for k in range(11)]
    found = matrix_counts(many)
    assert found.commonest[0] == ("512 \N{MULTIPLICATION SIGN} 512", 3)
    assert (len(found.commonest), found.others, found.other_series) == (10, 2, 2)


def test_a_histogram_counts_all_and_says_how_many_lie_far_out():
    values = {"CTA": np.full(300, 1.0), "MRA": np.array([]), "MRI T2": np.linspace(2, 3, 99), "CT": np.array([900.0])}
    plot = histogram(MEASURES[0], values)
    assert plot is not None
    assert plot.caption == "n = 400 series; 2 beyond 2.99 are not shown."
    bars = [b for b in plot.figure.axes[0].patches if b.get_height()]
    assert sum(b.get_height() for b in bars) == sum((v < 2.995).sum() for v in values.values())
    assert histogram(MEASURES[0], {"CTA": np.array([])}) is None


def test_one_value_makes_a_plot_too():
    plot = histogram(MEASURES[0], {"CTA": np.array([5.0, 5.0])})
    assert plot is not None
    assert "n = 2 series." in plot.caption
    assert svg_text(plot).startswith("<?xml")


def test_ages_are_drawn_for_each_sex_that_has_enough():
    plot = age_plot(age_table([(50, "female")] * 6 + [(40, "male")] * 5 + [(60, "male")] * 7))
    assert plot is not None
    assert [axes.get_title() for axes in plot.figure.axes] == ["female, n = 6", "male, n = 12"]
    assert [bar.get_width() for bar in plot.figure.axes[1].patches] == [5, 7]
    assert age_plot(age_table([(50, "female")] * 4)) is None
