"""Where bone is found, on volumes whose answer is known; and of which stored values it can't be told."""

from __future__ import annotations

import numpy as np
import pytest

from aneurysm.spec import load_spec, shipped_specs
from aneurysm.volume.bone import bone_problem, find_bone
from aneurysm.volume.cells import expand_cells
from aneurysm.volume.intensity import StoredIntensity, ct_intensity

HU = StoredIntensity("HU", 1.0, 0.0, (-1000, 2000), (-100, 900), {}, -1000, "int16")
SHAPE = (72, 76, 80)
MIDDLE = np.array(SHAPE) / 2
Z, Y, X = np.ogrid[tuple(slice(n) for n in SHAPE)]
RADIUS = np.sqrt((Z - MIDDLE[0]) ** 2 + (Y - MIDDLE[1]) ** 2 + (X - MIDDLE[2]) ** 2)
SHELL = (RADIUS > 26) & (RADIUS < 31)


def skull(bone_hu: float = 1000.0) -> np.ndarray:
    """A shell of bone, 5 mm thick, about a brain, within a scalp."""
    values = np.where(RADIUS < 34, 40.0, -1000.0)
    values[SHELL] = bone_hu
    return values


def label(values: np.ndarray, intensity: StoredIntensity = HU, spacing_mm=(1.0, 1.0, 1.0)) -> np.ndarray:
    found = find_bone(intensity.store(values.astype(np.float32)), intensity, spacing_mm)
    assert found is not None
    return expand_cells(found.cells, found.edge, (0, 0, 0), values.shape)


def tube(axis: int, low: int, high: int, across: tuple[float, float], radius: float = 2.5) -> np.ndarray:
    """Voxels within ``radius`` of a line along ``axis``."""
    others = [grid for k, grid in enumerate((Z, Y, X)) if k != axis]
    along = (Z, Y, X)[axis]
    r2 = sum((grid - at) ** 2 for grid, at in zip(others, across, strict=True))
    return np.broadcast_to((r2 < radius**2) & (along >= low) & (along < high), SHAPE)


@pytest.mark.parametrize("name", shipped_specs())
def test_the_skull_is_bone_and_the_brain_is_none(name: str) -> None:
    spec = load_spec(name)
    bone = label(skull(), ct_intensity(spec.intensity.CT, spec.storage))
    assert bone[SHELL].all()
    assert not bone[RADIUS < 22].any()
    assert not bone[RADIUS > 35].any()


def test_a_vessel_within_the_brain_stays() -> None:
    vessel = tube(0, 20, 52, (38.0, 40.0))
    values = skull()
    values[vessel] = 350
    assert vessel.sum() > 500
    assert not label(values)[vessel].any()


def test_a_vessel_that_touches_the_skull_is_lost_near_it_alone() -> None:
    """4 mm, and a cell of 2 mm on top of those: no further, however long it is."""
    vessel = tube(2, 40, 66, (36.0, 38.0)) & (RADIUS <= 26)
    values = skull()
    values[vessel] = 450
    bone = label(values)
    far = vessel & (RADIUS < 18)
    assert far.sum() > 200
    assert not bone[far].any()
    assert bone[vessel & (RADIUS > 24)].all()


def test_spongy_bone_between_two_tables_is_bone() -> None:
    thick = (RADIUS > 21) & (RADIUS < 31)
    values = skull()
    values[thick] = np.where((RADIUS > 23) & (RADIUS < 29), 450.0, 1000.0)[thick]
    assert label(values)[thick].all()


def test_what_bone_encloses_is_closed_and_an_air_cell_is_not() -> None:
    values = skull()
    values[RADIUS <= 26] = 450  # a body of spongy bone, 50 mm wide, as no vessel is
    values[RADIUS < 8] = -1000
    bone = label(values)
    assert bone[(RADIUS < 31) & (RADIUS > 11)].all()
    assert not bone[RADIUS < 5].any()


def test_small_and_bright_is_no_bone() -> None:
    values = np.where(RADIUS < 34, 40.0, -1000.0)
    plaque = RADIUS < 4
    values[plaque] = 1500
    assert not label(values).any()


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 0.5), (2.0, 1.0, 1.0), (5.0, 1.0, 1.0)])
def test_other_spacings_find_the_same_shell(spacing_mm: tuple[float, float, float]) -> None:
    values = np.full((40, 80, 80), 40.0)
    values[:, 20:40] = 1000  # a plate
    bone = label(values, spacing_mm=spacing_mm)
    assert bone[:, 20:40].all()
    assert not bone[:, :12].any()
    assert not bone[:, 48:].any()


@pytest.mark.parametrize(
    ("clip", "levels", "why"),
    [((-200.0, 600.0), 256, "keeps -200 to 600 HU"), ((300.0, 1500.0), 256, "keeps 300"), ((-1000, 2000), 16, "steps")],
)
def test_of_a_narrow_range_bone_is_not_told(clip, levels, why) -> None:
    spec = load_spec("rsna-1mm-u8")
    entry = spec.intensity.CT.model_copy(update={"clip_hu": clip, "window_hu": clip, "levels": levels})
    intensity = ct_intensity(entry, spec.storage)
    assert why in bone_problem(intensity)
    assert find_bone(intensity.store(skull().astype(np.float32)), intensity, (1, 1, 1)) is None


def test_of_mr_bone_is_not_told() -> None:
    intensity = StoredIntensity("arbitrary", 0.5, 10.0, (0, 1000), (50, 1000), {}, -20, "int16")
    assert "only CT" in bone_problem(intensity)
    assert find_bone(np.zeros((8, 8, 8), np.int16), intensity, (1, 1, 1)) is None


def test_a_volume_smaller_than_a_cell_has_an_answer() -> None:
    assert not label(np.full((1, 1, 3), 1500.0)).any()
