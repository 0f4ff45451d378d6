"""Stored values -> Hounsfield units: intercepts that must not be applied, padding that is air, values to be clipped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydicom import Dataset

from tests.support.acquisition import acquire
from tests.support.cached import cached
from tests.support.pattern import anatomy
from tests.support.pixels import Storage
from tests.support.series import CT, MR, write_series
from tests.support.truth import assert_shows

STACK = acquire(slices=8, gap_mm=2, shape=(25, 27))
PATTERN = anatomy(STACK.centre)
MR_PATTERN = anatomy(STACK.centre, base=700)


class TestAlreadyHounsfieldUnits:
    """Some files carry an intercept although their pixels are in HU already."""

    AIR_AND_BODY = replace(PATTERN, base=PATTERN.base - 500)  # reaches below -600 HU, as any scan with air does

    def test_an_intercept_on_top_of_hounsfield_units_is_ignored(self, tmp_path):
        storage = Storage(16, 16, signed=True, intercept=0.0)

        def edit(dataset: Dataset, index: int) -> None:
            dataset.RescaleIntercept = -1024

        pattern = self.AIR_AND_BODY
        assert STACK.sample(pattern).min() < -150
        write_series(tmp_path / "s", STACK, pattern, storage=storage, edit=edit)
        image = cached(tmp_path / "s")
        assert_shows(image, STACK, pattern)
        assert any("hu" in code for code in image.codes), image.meta["decisions"]

    def test_a_true_intercept_is_obeyed_for_signed_pixels(self, tmp_path):
        storage = Storage(16, 16, signed=True, intercept=-1024.0)
        write_series(tmp_path / "s", STACK, self.AIR_AND_BODY, storage=storage)
        image = cached(tmp_path / "s")
        assert_shows(image, STACK, self.AIR_AND_BODY)
        assert not any("hu" in code for code in image.codes)

    def test_ges_padding_of_minus_2000_does_not_look_like_hounsfield_units(self, tmp_path):
        storage = Storage(16, 16, signed=True, intercept=-1024.0)
        pattern = self.AIR_AND_BODY
        values, outside = _with_round_field(pattern, -2000 - 1024)
        write_series(tmp_path / "s", STACK, values, storage=storage)
        image = cached(tmp_path / "s")
        _assert_padded(image, pattern, outside)

    def test_hounsfield_units_of_a_whole_series_are_judged_together(self, tmp_path):
        """A slice without air must not be rescaled while its neighbours are not."""
        storage = Storage(16, 16, signed=True, intercept=0.0)
        values = STACK.sample(self.AIR_AND_BODY)
        values[:, :3] = -1000.0
        values[4] = STACK.sample(PATTERN)[4] + 200  # nothing below -100 here

        def edit(dataset: Dataset, index: int) -> None:
            dataset.RescaleIntercept = -1024

        assert values[4].min() > -100
        write_series(tmp_path / "s", STACK, values, storage=storage, edit=edit)
        image = cached(tmp_path / "s")
        for row, column in [(12, 13), (20, 5), (8, 22)]:
            expected = values[4, row, column]
            assert image.at(STACK.lps(4, column, row)) == pytest.approx(expected, abs=300)

    def test_padding_that_nobody_declared_is_no_air_in_hounsfield_units(self, tmp_path):
        """Raw -1024 over the round field, and a true intercept."""
        storage = Storage(16, 16, signed=True, intercept=-1024.0)
        values, outside = _with_round_field(PATTERN, -2048)
        write_series(tmp_path / "s", STACK, values, storage=storage)
        image = cached(tmp_path / "s")
        assert "already_hu" not in image.codes
        _assert_padded(image, PATTERN, outside)


def _with_round_field(pattern, padding: float):
    """The pattern inside a disc of 11 mm about the middle column of pixels, ``padding`` beyond it."""
    values = STACK.sample(pattern)
    away = np.linalg.norm((STACK.points() - STACK.centre)[..., :2], axis=-1)
    outside = away > 11
    values[outside] = padding
    return values, outside


def _assert_padded(image, pattern, outside) -> None:
    away = np.linalg.norm((image.centres() - STACK.centre)[..., :2], axis=-1)
    # Interpolation and smoothing reach 1.5 mm; what is nearer to the rim is a mixture of both.
    assert_shows(image, STACK, pattern, where=away < 9)
    beyond = image.physical[(away > 13)]
    assert beyond.size > 100
    assert (beyond == -1000).all(), f"padding came out as {np.unique(beyond)[:5]}"


@pytest.mark.parametrize(
    "storage, padding",
    [
        pytest.param(CT, 0, id="zero"),
        pytest.param(CT, 4095, id="as bright as can be"),
        pytest.param(Storage(16, 16, signed=True, intercept=-1024.0), -32768, id="most negative"),
        pytest.param(Storage(16, 16, signed=True), -3024, id="below air"),
        pytest.param(Storage(16, 16, signed=False, intercept=-1024.0), 63536, id="unsigned for -2000"),
    ],
)
def test_padding_becomes_air(tmp_path, storage, padding):
    values, outside = _with_round_field(PATTERN, padding + storage.intercept)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.PixelPaddingValue = padding
        dataset["PixelPaddingValue"].VR = "SS" if storage.signed else "US"

    write_series(tmp_path / "s", STACK, values, storage=storage, edit=edit)
    _assert_padded(cached(tmp_path / "s"), PATTERN, outside)


def test_a_range_of_padding_values_becomes_air(tmp_path):
    values, outside = _with_round_field(PATTERN, 3000.0)
    values[outside] += np.arange(outside.sum()) % 50

    def edit(dataset: Dataset, index: int) -> None:
        dataset.PixelPaddingValue = 3000 + 1024
        dataset.PixelPaddingRangeLimit = 4095
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            dataset[keyword].VR = "US"

    write_series(tmp_path / "s", STACK, values, edit=edit)
    _assert_padded(cached(tmp_path / "s"), PATTERN, outside)


@pytest.mark.parametrize("inverted", [False, True], ids=["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("padding", [0, 4095], ids=["dark", "bright"])
def test_padding_of_mr_is_dark(tmp_path, padding, inverted):
    values, _ = _with_round_field(MR_PATTERN, 4095 - padding if inverted else padding)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.PixelPaddingValue = padding
        dataset["PixelPaddingValue"].VR = "US"

    storage = replace(MR, inverted=inverted)
    write_series(tmp_path / "s", STACK, values, modality="MR", storage=storage, edit=edit)
    image = cached(tmp_path / "s")
    away = np.linalg.norm((image.centres() - STACK.centre)[..., :2], axis=-1)
    assert_shows(image, STACK, MR_PATTERN, where=away < 9)
    assert image.physical[away > 13].max() < image.physical[away < 9].min()


@pytest.mark.parametrize("storage", [MR, replace(MR, signed=True)], ids=["unsigned", "signed"])
def test_what_is_brightest_in_inverted_mr_is_not_its_padding(tmp_path, storage):
    low, high = storage.limits
    values, _ = _with_round_field(MR_PATTERN, low)
    values[2:6, 9:16, 9:16] = high

    def edit(dataset: Dataset, index: int) -> None:
        dataset.PixelPaddingValue = high
        dataset["PixelPaddingValue"].VR = "SS" if storage.signed else "US"

    write_series(tmp_path / "s", STACK, values, modality="MR", storage=replace(storage, inverted=True), edit=edit)
    image = cached(tmp_path / "s")
    assert image.at(STACK.lps(4, 12, 12)) == pytest.approx(high, abs=2)
    assert image.at(STACK.lps(4, 0, 0)) == pytest.approx(0, abs=2)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("inverted", [False, True], ids=["for display alone", "as stored"])
def test_ct_of_monochrome1_is_inverted_unless_that_takes_the_air_from_its_borders(tmp_path, inverted, signed):
    storage = Storage(16, 12, signed=signed, intercept=0.0 if signed else -1024.0, inverted=inverted)
    values, outside = _with_round_field(PATTERN, -1000.0)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.PhotometricInterpretation = "MONOCHROME1"

    write_series(tmp_path / "s", STACK, values, storage=storage, edit=edit)
    image = cached(tmp_path / "s")
    assert "monochrome1" in image.codes
    _assert_padded(image, PATTERN, outside)


def test_padding_beyond_the_bits_that_are_stored_is_compared_as_pixels_are(tmp_path):
    """-2000 as 16 bits without a sign, of which 12 are read: 2096."""
    values, _ = _with_round_field(MR_PATTERN, 2096)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.PixelData = np.where(dataset.pixel_array == 2096, 63536, dataset.pixel_array).astype("<u2").tobytes()
        dataset.PixelPaddingValue = 63536
        dataset["PixelPaddingValue"].VR = "US"

    write_series(tmp_path / "s", STACK, values, modality="MR", edit=edit)
    image = cached(tmp_path / "s")
    assert image.at(STACK.lps(4, 0, 0)) == pytest.approx(0, abs=2)
    assert image.at(STACK.lps(4, 12, 12)) > 100


def test_ct_without_a_rescale_is_in_hounsfield_units(tmp_path):
    write_series(tmp_path / "s", STACK, PATTERN, storage=Storage(16, 16, signed=True, slope=None, intercept=None))
    assert_shows(cached(tmp_path / "s"), STACK, PATTERN)


def test_values_beyond_the_window_are_clipped_and_not_wrapped(tmp_path):
    stack = acquire(slices=10)
    values = np.zeros((10, 32, 28))
    values[3:7, 5:12] = 30000.0
    values[3:7, 18:25] = -20000.0
    write_series(tmp_path / "s", stack, values, storage=Storage(16, 16, signed=True))
    image = cached(tmp_path / "s")
    assert image.meta["intensity"]["clip"] == [-1000, 2000]
    assert image.at(stack.lps(5, 14, 8)) == 2000
    assert image.at(stack.lps(5, 14, 21)) == -1000
    assert image.at(stack.lps(5, 14, 15)) == 0
