"""Seconds by facts: what is known goes in the right direction, and nothing that was recorded can make it absurd."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aneurysm.dicom.encoding import EXPLICIT_LITTLE, JPEG_2000, JPEG_LS, RLE
from aneurysm.precaching.expected_seconds import CostModel, encoding_of, fitted_costs
from aneurysm.rawdata.facts import SeriesFacts

RAW, J2K, JLS = EXPLICIT_LITTLE, JPEG_2000[0], JPEG_LS[0]


def facts(slices: int, syntax: str, ratio: float = 1.0) -> SeriesFacts:
    voxels = slices * 512 * 512
    return SeriesFacts(slices, int(2 * voxels / ratio), slices, voxels, syntax)


@pytest.mark.parametrize(
    "slices, syntax, ratio, measured",
    [
        (40, RAW, 1, 0.07), (120, RAW, 1, 0.19), (240, RAW, 1, 0.36), (400, RAW, 1, 0.57),
        (120, JLS, 2.5, 0.80), (240, JLS, 2.5, 1.73), (40, J2K, 2.5, 0.97), (120, J2K, 2.5, 2.87),
    ],
)  # fmt: skip
def test_the_constants_are_what_was_measured_and_reading(slices, syntax, ratio, measured):
    """Of benchmarks/RESULTS.md, with files in the page cache."""
    series = facts(slices, syntax, ratio)
    assert CostModel().seconds(series) == pytest.approx(measured + 4e-9 * series.bytes, rel=0.15)


def test_of_what_no_header_is_known_bytes_count():
    small, large = (CostModel().seconds(SeriesFacts(10, size)) for size in (10**7, 10**8))
    assert 0 < small < large
    assert CostModel().seconds(facts(100, RAW)) < CostModel().seconds(SeriesFacts(100, 10**9))


def test_kinds_of_encoding():
    assert [encoding_of(s) for s in (RAW, RLE, JLS, J2K, "", "1.2.3")] == [
        "plain", "RLE", "JPEG-LS", "JPEG 2000", "unknown", "other",
    ]  # fmt: skip
    assert encoding_of(f"{RAW},{J2K}") == "JPEG 2000"
    assert encoding_of("1.2.840.10008.1.2.4.201") == "JPEG 2000"


def test_a_machine_that_decodes_slowly_is_learnt_from_what_it_took():
    base = CostModel()
    points = [(facts(n, RAW), 2 * base.seconds(facts(n, RAW))) for n in range(50, 70)]
    points += [(facts(n, J2K), 6 * base.seconds(facts(n, J2K))) for n in range(50, 62)]
    points += [(facts(n, JLS), 9 * base.seconds(facts(n, JLS))) for n in range(50, 55)]  # too few
    points += [(facts(60, RAW), 5000.0), (facts(60, RAW), 1e-9)]  # a disk that hung, and nonsense
    fitted = fitted_costs(points)
    assert fitted.factors == {"JPEG 2000": pytest.approx(6, rel=0.01), "plain": pytest.approx(2, rel=0.01)}
    # Of kinds that are not known, the median of all.
    assert fitted.seconds(facts(100, JLS)) == pytest.approx(2 * base.seconds(facts(100, JLS)), rel=0.01)


def test_few_points_change_nothing():
    assert fitted_costs([]) == CostModel()
    assert fitted_costs([(facts(50, RAW), 100.0)] * 9) == CostModel()


numbers = st.integers(0, 2**60)
any_facts = st.builds(SeriesFacts, numbers, numbers, numbers, numbers, st.sampled_from(["", RAW, J2K, "x"]))


@given(st.lists(st.tuples(any_facts, st.floats(width=32)), max_size=40), any_facts)
def test_whatever_was_recorded_seconds_are_a_positive_number(points, series):
    seconds = fitted_costs(points).seconds(series)
    assert math.isfinite(seconds)
    assert seconds > 0
    plain = CostModel().seconds(series)
    assert plain / 25 < seconds < 25 * plain
