"""Hounsfield units with known answers; MR on a scale that keeps order, detail and the brightest vessels."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.acquisition import Acquisition, acquire
from tests.support.cached import cached
from tests.support.pattern import anatomy
from tests.support.pixels import Storage
from tests.support.series import write_series
from tests.support.truth import assert_shows

STACK = acquire(shape=(40, 40), slices=32)


def _head(acquisition: Acquisition, levels: dict[str, float]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A head in air: a ball of brain with fluid in its middle, and a vessel of 3 voxels' width to one side."""
    points = acquisition.points() - acquisition.centre
    away = np.linalg.norm(points, axis=-1)
    vessel = np.linalg.norm(points[..., :2] - [9.0, -2.0], axis=-1) < 1.8
    regions = {
        "air": away >= 15,
        "brain": (away < 15) & (away >= 5) & ~vessel,
        "fluid": (away < 5),
        "vessel": vessel & (away < 14),
    }
    values = np.zeros(points.shape[:-1])
    for name, region in regions.items():
        values[region] = levels[name]
    return values, regions


def test_hounsfield_units_come_out_as_they_went_in(tmp_path):
    values, _ = _head(STACK, {"air": -1000, "brain": 35, "fluid": 5, "vessel": 320})
    write_series(tmp_path / "s", STACK, values)
    image = cached(tmp_path / "s")
    intensity = image.meta["intensity"]
    assert (intensity["unit"], intensity["scale"], intensity["offset"]) == ("HU", 1, 0)
    assert image.stored.dtype == np.int16
    assert intensity["clip"] == [-1000, 2000]
    at = {"fluid": (0, 0, 0), "vessel": (9, -2, 0), "brain": (-9, 3, 2), "air": (17, 17, 0)}
    found = {name: image.at(STACK.centre + offset) for name, offset in at.items()}
    assert found == {"fluid": 5, "vessel": 320, "brain": 35, "air": -1000}
    assert np.array_equal(image.physical, values), "at its own spacing a volume is only copied"


LEVELS = {"air": 4.0, "brain": 400.0, "fluid": 150.0, "vessel": 1400.0}


class TestMR:
    @pytest.fixture
    def image(self, tmp_path):
        values, _ = _head(STACK, LEVELS)
        noise = np.random.default_rng(0).normal(0, 4, values.shape)
        write_series(tmp_path / "s", STACK, np.clip(values + noise, 0, None).round(), modality="MR")
        return cached(tmp_path / "s")

    def _found(self, image, name: str) -> float:
        offset = {"fluid": (0, 0, 0), "vessel": (9, -2, 0), "brain": (-9, 3, 2), "air": (17, 17, 0)}[name]
        index = np.rint(image.zyx(STACK.centre + np.array(offset))).astype(int)
        around = tuple(slice(i - 1, i + 2) for i in index) if name != "vessel" else tuple(index)
        return float(np.mean(image.physical[around]))

    def test_the_order_of_tissues_is_kept(self, image):
        found = {name: self._found(image, name) for name in LEVELS}
        assert sorted(found, key=found.get) == ["air", "fluid", "brain", "vessel"]

    def test_physical_values_can_be_had_back(self, image):
        for name, level in LEVELS.items():
            assert self._found(image, name) == pytest.approx(level, abs=12)
        assert image.meta["intensity"]["unit"] == "arbitrary"

    def test_the_brightest_vessels_are_not_clipped_flat(self, image):
        """They are under 1 % of the head: what lies above the upper percentile must keep its detail."""
        brightest = image.physical[image.physical > 1200]
        assert len(brightest) > 50
        assert len(np.unique(brightest)) > 20
        assert brightest.max() < image.meta["intensity"]["clip"][1]

    def test_about_twelve_bits_are_stored(self, image):
        assert image.stored.dtype == np.int16
        low, high = image.meta["intensity"]["clip"]
        steps = (high - low) / image.meta["intensity"]["scale"]
        assert 2**11 <= steps <= 2**13
        assert image.meta["intensity"]["scale"] <= 2, "steps finer than the noise of 4 grey levels"

    def test_the_window_maps_the_head_into_zero_to_one(self, image):
        low, high = image.meta["intensity"]["window"]

        def shown(name: str) -> float:
            return (self._found(image, name) - low) / (high - low)

        # Fluid is the darkest percent of this head, a vessel the brightest: they span the window, with head-room above.
        assert shown("air") < shown("fluid") < 0.05 < shown("brain") < 0.3 < shown("vessel") < 0.9


@pytest.mark.parametrize("factor", [0.02, 1.0, 14.0], ids=["dim", "usual", "bright"])
def test_mr_of_any_scale_looks_the_same_to_a_model(tmp_path, factor):
    """MR has no unit: a scanner's gain must not matter."""
    values, _ = _head(STACK, LEVELS)
    storage = Storage(16, 16, signed=False, slope=factor, intercept=0.0)
    write_series(tmp_path / "s", STACK, values * factor, modality="MR", storage=storage)
    image = cached(tmp_path / "s")
    low, high = image.meta["intensity"]["window"]
    shown = (image.at(STACK.centre + np.array([-9, 3, 2])) - low) / (high - low)
    write_series(tmp_path / "plain", STACK, values, modality="MR")
    plain = cached(tmp_path / "plain")
    low, high = plain.meta["intensity"]["window"]
    expected = (plain.at(STACK.centre + np.array([-9, 3, 2])) - low) / (high - low)
    assert shown == pytest.approx(expected, abs=0.02)


def test_the_share_of_air_around_the_head_does_not_change_its_scale(tmp_path):
    shown = []
    for name, stack in (("wide", acquire(shape=(64, 64), slices=40)), ("narrow", STACK)):
        values, _ = _head(stack, LEVELS)
        write_series(tmp_path / name, stack, values, modality="MR")
        image = cached(tmp_path / name)
        low, high = image.meta["intensity"]["window"]
        shown.append((400.0 - low) / (high - low))
    assert shown[0] == pytest.approx(shown[1], abs=0.03)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_half_the_bytes_keep_the_pattern(tmp_path, modality):
    stack = acquire(gap_mm=1.3, spacing_mm=(0.9, 1.1))
    pattern = anatomy(stack.centre, base=300 if modality == "CT" else 700)
    write_series(tmp_path / "s", stack, pattern, modality=modality)
    image = cached(tmp_path / "s", spec="rsna-1mm-u8")
    assert image.stored.dtype == np.uint8
    assert image.meta["spec"] == "rsna-1mm-u8"
    assert_shows(image, stack, pattern)
