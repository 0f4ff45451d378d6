"""Blocks of slices of another tilt, matrix or spacing: parts of one volume, scouts, or a refusal with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset

from tests.support.acquisition import Acquisition, acquire
from tests.support.cached import cached, rejected
from tests.support.pattern import anatomy
from tests.support.series import new_uid, write_series

UID = new_uid("parts")
UPPER = acquire(slices=16, gap_mm=4.0, shape=(40, 40), spacing_mm=(2.0, 2.0), middle=(0, 0, 40))
PATTERN = anatomy(UPPER.centre, 120.0)


def lower(gap_mm: float = 2.0, slices: int = 12, *, from_upper_mm: float = 6.0, **options: object) -> Acquisition:
    """A block below the upper one; the two outermost slices are ``from_upper_mm`` apart at their centres."""
    top = UPPER.positions[:, 2].min() - from_upper_mm
    settings = {"shape": (40, 40), "spacing_mm": (2.0, 2.0), **options}
    return acquire(slices=slices, gap_mm=gap_mm, middle=(0, 0, top - (slices - 1) * gap_mm / 2), **settings)


def write(folder: Path, *blocks: Acquisition, modality: str = "CT", **tags: list[object]) -> None:
    for number, block in enumerate(blocks):

        def edit(dataset: Dataset, _index: int, number: int = number) -> None:
            for keyword, values in tags.items():
                setattr(dataset, keyword, values[number])

        write_series(
            folder, block, PATTERN, uid=UID, label=str(number), modality=modality, edit=edit, first_number=100 * number
        )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"tilt_deg": 15.0}, id="another tilt"),
        pytest.param({"spacing_mm": (1.5, 1.5), "shape": (52, 52)}, id="another matrix and spacing"),
        pytest.param({"tilt_deg": -20.0, "slices": 16}, id="as many slices as the others"),
    ],
)
def test_a_block_that_continues_the_head_is_a_part_of_the_volume(tmp_path, options):
    block = lower(**options)
    write(tmp_path / "s", UPPER, block)
    image = cached(tmp_path / "s")
    assert "several_parts" in image.codes
    assert "minority_dropped" not in image.codes
    assert image.meta["source"]["shape"] == [16, 40, 40]
    (other,) = image.meta["source"]["other_parts"]
    assert other["shape"] == [len(block), *block.shape]
    assert other["orientation"] == pytest.approx(block.orientation, abs=1e-5)


def test_three_blocks_behind_each_other_are_one_volume(tmp_path):
    middle = lower(tilt_deg=12.0)
    below_middle = 6.0 + 11 * 2.0 + 5.0
    third = lower(gap_mm=3.0, slices=10, from_upper_mm=below_middle, spacing_mm=(1.6, 1.6), shape=(50, 50))
    write(tmp_path / "s", third, UPPER, middle)
    image = cached(tmp_path / "s")
    assert sorted(p["shape"][0] for p in image.meta["source"]["other_parts"]) == [10, 12]


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(acquire("coronal", slices=6, gap_mm=2, shape=(40, 40), middle=(0, 0, -20)), id="crossing planes"),
        pytest.param(lower(slices=5, gap_mm=15.0, spacing_mm=(3.0, 3.0)), id="slices far apart"),
        pytest.param(lower(slices=2, gap_mm=5.0, tilt_deg=15.0), id="two slices"),
        pytest.param(
            acquire(slices=10, gap_mm=5.0, shape=(30, 30), spacing_mm=(2.0, 2.0), middle=(0, 0, 40)),
            id="what the others cover",
        ),
        pytest.param(acquire(slices=12, gap_mm=2, shape=(20, 20), middle=(200, 0, -10)), id="beside the body"),
    ],
)
def test_scouts_are_left_out_as_before(tmp_path, block):
    write(tmp_path / "s", UPPER, block)
    image = cached(tmp_path / "s")
    assert "minority_dropped" in image.codes
    assert image.meta["source"]["other_parts"] == []


def test_a_part_behind_too_wide_a_gap_is_no_scout(tmp_path):
    write(tmp_path / "s", UPPER, lower(tilt_deg=15.0, from_upper_mm=25.0))
    assert rejected(tmp_path / "s") == "separate_parts"


def test_a_few_slices_behind_too_wide_a_gap_are_dropped(tmp_path):
    stack = acquire(slices=40, gap_mm=2.0, shape=(40, 40), spacing_mm=(2.0, 2.0), middle=(0, 0, 47))
    write(tmp_path / "s", stack, lower(slices=4, gap_mm=3.0, tilt_deg=15.0, from_upper_mm=25.0))
    image = cached(tmp_path / "s")
    assert "dropped_slices" in image.codes


@pytest.mark.parametrize("echoes, merged", [([3.4, 3.404], True), ([3.4, 90.0], False)])
def test_parts_of_mr_must_have_been_taken_alike(tmp_path, echoes, merged):
    write(tmp_path / "s", UPPER, lower(tilt_deg=15.0), modality="MR", EchoTime=echoes)
    if merged:
        assert "several_parts" in cached(tmp_path / "s").codes
    else:
        assert rejected(tmp_path / "s") == "separate_parts"


def test_two_crossing_stacks_of_equal_size_have_no_majority(tmp_path):
    write(tmp_path / "s", UPPER, acquire("sagittal", slices=16, gap_mm=4.0, shape=(40, 40), middle=(0, 0, 40)))
    assert rejected(tmp_path / "s") == "no_majority"
