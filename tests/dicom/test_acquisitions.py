"""Acquisitions that overlap or lie between each other: of two heads, or twice of one, no volume has slices by turns."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from aneurysm.dicom.content import PixelContent
from aneurysm.dicom.pixels import PixelReader
from aneurysm.dicom.series import read_series
from aneurysm.dicom.stack import Stack, stack_frames
from aneurysm.spec import load_spec
from tests.support.acquisition import acquire
from tests.support.cached import CachedImage, cached, rejected, run
from tests.support.pattern import anatomy
from tests.support.series import new_uid, write_series
from tests.support.truth import assert_shows

UID = new_uid("acquisitions")
PLACES = np.arange(14) * 2.5
BOTH = acquire(offsets_mm=[*PLACES, *(PLACES + 1.25)])
FIRST, SECOND = BOTH.take(range(14)), BOTH.take(range(14, 28))
PATTERN, OTHER = (anatomy(BOTH.centre, BOTH.extent_mm, base) for base in (400.0, 700.0))
VALUES = np.concatenate([FIRST.sample(PATTERN), SECOND.sample(OTHER)])


def _time(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    return f"10{int(minutes):02}{seconds:06.3f}"


def _assert_first(image: CachedImage) -> None:
    assert "several_volumes" in image.codes
    assert image.meta["source"]["shape"][0] == 14
    assert_shows(image, FIRST, PATTERN)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(
    "keyword, values",
    [
        ("AcquisitionNumber", (3, 4)),
        ("AcquisitionTime", ("100000.5", "100130")),
        ("ContentTime", ("100000", "100130.25")),
    ],
)
@pytest.mark.parametrize("numbered", ["in turn", "one after the other", "not at all"])
def test_two_half_a_gap_apart_are_not_one(tmp_path, modality, keyword, values, numbered):
    def edit(dataset: Dataset, index: int) -> None:
        second, place = divmod(index, 14)
        setattr(dataset, keyword, values[second])
        del dataset.InstanceNumber
        if numbered != "not at all":
            dataset.InstanceNumber = 1 + (2 * place + second if numbered == "in turn" else index)

    write_series(tmp_path / "s", BOTH, VALUES, modality=modality, edit=edit)
    _assert_first(cached(tmp_path / "s"))


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("back", [False, True], ids=["twice upwards", "up and down"])
@pytest.mark.parametrize("pause_s", [0.4, 60])
def test_times_of_every_slice_tell_two_passes(tmp_path, modality, back, pause_s):
    def edit(dataset: Dataset, index: int) -> None:
        second, place = divmod(index, 14)
        rank = 13 - place if back and second else place
        dataset.AcquisitionTime = _time((5.2 + pause_s) * second + 0.4 * rank)
        del dataset.InstanceNumber

    write_series(tmp_path / "s", BOTH, VALUES, modality=modality, edit=edit)
    _assert_first(cached(tmp_path / "s"))


def test_numbers_tell_two_heads_half_a_gap_apart_by_their_pixels(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.InstanceNumber = index + 1

    write_series(tmp_path / "s", BOTH, VALUES, modality="MR", stripped=True, edit=edit)
    _assert_first(cached(tmp_path / "s"))


@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("noise", [0, 60])
def test_one_stack_of_mr_whose_slices_were_taken_by_turns_is_one(tmp_path, passes, noise):
    """As usual: every second slice first, then those between, each with its time; they even differ in level."""
    stack = acquire(slices=24, gap_mm=1.25)
    order = [i for k in range(passes) for i in range(k, 24, passes)]
    values = stack.sample(PATTERN)
    values[::passes] *= 1.02
    values += np.random.default_rng(3).normal(0, max(noise, 1e-9), values.shape)

    def edit(dataset: Dataset, index: int) -> None:
        rank = order.index(index)
        dataset.AcquisitionTime, dataset.InstanceNumber = _time(3.5 * rank), rank + 1

    write_series(tmp_path / "s", stack, np.clip(values, 0, 4000), modality="MR", edit=edit)
    image = cached(tmp_path / "s")
    assert image.codes == set()
    assert image.meta["source"]["shape"][0] == 24


@pytest.mark.parametrize("keyword", ["AcquisitionTime", "ContentTime"])
def test_times_in_any_order_do_not_part_a_stack(tmp_path, keyword):
    stack = acquire(slices=24)

    def edit(dataset: Dataset, index: int) -> None:
        setattr(dataset, keyword, _time(7.0 * (index * 7 % 24)))

    write_series(tmp_path / "s", stack, PATTERN, edit=edit)
    image = cached(tmp_path / "s")
    assert image.codes == set()
    assert_shows(image, stack, PATTERN)


def test_rotations_of_a_sequential_ct_are_one_stack(tmp_path):
    """Four slices a rotation, each rotation with its number and time, and the table moves towards the feet."""
    stack = acquire(slices=24, gap_mm=2.0)
    pattern = anatomy(stack.centre, stack.extent_mm)

    def edit(dataset: Dataset, index: int) -> None:
        rotation = (23 - index) // 4
        dataset.AcquisitionNumber, dataset.AcquisitionTime = rotation + 1, _time(2.0 * rotation)

    write_series(tmp_path / "s", stack, pattern, edit=edit)
    image = cached(tmp_path / "s")
    assert image.codes == set()
    assert_shows(image, stack, pattern)


def test_one_frame_without_the_tag_does_not_hide_two_volumes(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        if index != 20:
            dataset.EchoTime = 4.6 if index < 14 else 9.2

    write_series(tmp_path / "s", BOTH, VALUES, modality="MR", edit=edit)
    _assert_first(cached(tmp_path / "s"))


@pytest.mark.parametrize("keyword", ["AcquisitionTime", "ContentTime"])
def test_times_tell_time_points_at_the_same_places(tmp_path, keyword):
    """Numbered at random, so that nothing else does."""
    rank = np.random.default_rng(5).permutation(28)
    twice = FIRST.take([*range(14), *range(14)])
    values = np.concatenate([FIRST.sample(PATTERN), FIRST.sample(OTHER)])

    def edit(dataset: Dataset, index: int) -> None:
        setattr(dataset, keyword, _time(30.0 * (index // 14) + 0.5 * (index % 14)))
        dataset.InstanceNumber = int(rank[index])

    write_series(tmp_path / "s", twice, values, edit=edit)
    _assert_first(cached(tmp_path / "s"))


def test_no_time_or_date_gets_into_what_is_written(tmp_path):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.AcquisitionTime = "123456.7" if index < 14 else "131415.6"
        dataset.ContentTime, dataset.AcquisitionDate = "232425", "19990203"

    write_series(tmp_path / "s", BOTH, VALUES, edit=edit)
    image = cached(tmp_path / "s")
    written = json.dumps(image.meta)
    seconds = 12 * 3600 + 34 * 60 + 56.7
    assert not any(text in written for text in ("123456", "131415", "232425", "19990203", f"{seconds:g}", str(seconds)))


class TestOverlap:
    """A neck of 30 slices and a head of 24 above it, which share six places or lie between each other there."""

    TAGS = ("AcquisitionNumber", "AcquisitionTime", "InstanceNumber")

    def _write(self, folder, tag: str, *, moved_mm: float, larger: str = "neck", jumble: bool = False):
        n = (30, 24) if larger == "neck" else (24, 30)
        low, high = np.arange(n[0]) * 1.0, n[0] - 6 + np.arange(n[1]) * 1.0 + moved_mm
        both = acquire(offsets_mm=[*low, *high], shape=(40, 40))
        neck, head = (anatomy(both.centre, both.extent_mm, base) for base in (300.0, 500.0))
        parts = both.take(range(n[0])), both.take(range(n[0], sum(n)))
        values = np.concatenate([parts[0].sample(neck), parts[1].sample(head)])
        rank = np.random.default_rng(8).permutation(sum(n))

        def edit(dataset: Dataset, index: int) -> None:
            dataset.InstanceNumber = index + 1 if tag == "InstanceNumber" else int(rank[index])
            if tag == "AcquisitionNumber":
                dataset.AcquisitionNumber = 5 if index < n[0] else 6
            elif tag == "AcquisitionTime":
                dataset.AcquisitionTime = _time(0.5 * index + 20 * (index >= n[0]))

        write_series(folder, both, values, uid=UID, edit=edit, stripped=tag == "InstanceNumber")
        return both, (neck, head)

    @pytest.mark.parametrize("larger", ["neck", "head"])
    @pytest.mark.parametrize("moved_mm", [0.0, 0.4])
    @pytest.mark.parametrize("tag", TAGS)
    def test_the_larger_one_wins_over_the_whole_overlap(self, tmp_path, tag, moved_mm, larger):
        both, patterns = self._write(tmp_path / "s", tag, moved_mm=moved_mm, larger=larger)
        image = cached(tmp_path / "s")
        assert "overlapping_acquisitions" in image.codes
        heights = np.sort(both.positions[:, 2])
        cut = both.positions[29, 2] if larger == "neck" else both.positions[24, 2]
        for pattern, side in zip(patterns, (1, -1), strict=True):
            assert_shows(image, both, pattern, where=side * (cut - image.centres()[..., 2]) > 1.2)
        assert abs(image.stored.shape[0] - (heights[-1] - heights[0] + 1)) < 1

    def test_of_two_that_nothing_tells_apart_one_is_taken_throughout(self, tmp_path):
        """Six of 96 places hold two frames: pixels say which are neighbours, and no gap is made."""
        both = acquire(offsets_mm=[*np.arange(60) * 1.0, *(54 + np.arange(42) * 1.0)], shape=(24, 24))
        neck, head = (anatomy(both.centre, both.extent_mm, base) for base in (300.0, 600.0))
        values = np.concatenate([both.take(range(60)).sample(neck), both.take(range(60, 102)).sample(head)])

        def edit(dataset: Dataset, index: int) -> None:
            del dataset.InstanceNumber

        write_series(tmp_path / "s", both, values, stripped=True, edit=edit)
        image = cached(tmp_path / "s")
        assert image.codes == {"duplicate_positions"}
        assert image.meta["source"]["shape"][0] == 96
        # Somewhere in the overlap one ends and the other begins.
        heights = image.centres()[..., 2]
        assert_shows(image, both, neck, where=heights < both.positions[54, 2] - 1.2)
        assert_shows(image, both, head, where=heights > both.positions[59, 2] + 1.2)
        level = image.physical.mean(axis=(1, 2)) - neck(image.centres()).mean(axis=(1, 2))
        assert (np.abs(np.diff(level[52:64])) > 100).sum() <= 2

    def test_a_row_of_duplicates_is_no_gap(self, tmp_path):
        """Five places in a row hold a second, different frame: were none of them used, a gap of 6 mm would be named."""
        stack = acquire(slices=60, shape=(24, 24))
        pattern = anatomy(stack.centre, stack.extent_mm)
        write_series(tmp_path / "s", stack, pattern, uid=UID, stripped=True)
        again = stack.take(range(30, 35))
        other = np.random.default_rng(1).uniform(0, 1500, (5, 24, 24))
        write_series(tmp_path / "s", again, other, uid=UID, stripped=True, label="again", first_number=26)
        image = cached(tmp_path / "s")
        assert image.codes == {"duplicate_positions"}
        assert_shows(image, stack, pattern)


def test_two_whole_stacks_at_random_are_refused(tmp_path):
    rank = np.random.default_rng(5).permutation(28)

    def edit(dataset: Dataset, index: int) -> None:
        dataset.InstanceNumber = int(rank[index])

    twice = FIRST.take([*range(14), *range(14)])
    write_series(tmp_path / "s", twice, VALUES, edit=edit, stripped=True)
    assert rejected(tmp_path / "s") == "several_volumes"


def test_the_spec_may_refuse_two_acquisitions(tmp_path):
    from tests.support.specs import write_spec

    def edit(dataset: Dataset, index: int) -> None:
        dataset.AcquisitionNumber = index // 14

    write_series(tmp_path / "s", BOTH, VALUES, edit=edit)
    spec = write_spec(tmp_path / "strict.toml", several_volumes='"reject"')
    assert run(tmp_path / "s", spec=str(spec)).reason() == "several_volumes"


def _stack(uid: str, paths) -> Stack:
    series = read_series(uid, paths)
    return stack_frames(series.frames, load_spec("rsna-1mm").slices, PixelContent(PixelReader()))


def _facts(stack: Stack) -> tuple[object, ...]:
    return (
        [f.sop_uid for f in stack.frames],
        {k[0].name: v for k, v in stack.dropped.items()},
        stack.decisions,
        stack.geometry.positions_mm.tolist(),
        stack.geometry.spacing_mm,
        stack.geometry.axes.tolist(),
    )


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Two acquisitions that overlap, drift, rounding, a projection, a scout, copies, and a stray: 50 files."""
    folder = tmp_path_factory.mktemp("order") / "s"
    stack = acquire(offsets_mm=[*np.arange(20) * 2.0, *(34.7 + np.arange(12) * 2.0), 140.0])

    def edit(dataset: Dataset, index: int) -> None:
        dataset.AcquisitionNumber = 1 if index < 20 else 2
        dataset.ImageOrientationPatient = ["1", f"{index * 4e-5:.6f}", "0", f"{-index * 4e-5:.6f}", "1", "0"]
        dataset.PixelSpacing = ["0.98", "0.98"] if index % 3 == 0 else ["0.976562", "0.976562"]
        dataset.InstanceNumber = 1 + index % 5

    pattern = anatomy(stack.centre, stack.extent_mm)
    write_series(folder, stack, np.clip(stack.sample(pattern), -900, 1900), uid=UID, edit=edit)
    write_series(folder, stack.take([3, 9, 9]), pattern, uid=UID, label="copies", edit=edit)
    write_series(folder, stack.take([5]), np.full((1, 32, 28), 900.0), uid=UID, label="differs", edit=edit)
    scout = acquire("sagittal", slices=2)
    write_series(folder, scout, np.full((2, 32, 28), 900.0), uid=UID, label="scouts")
    return sorted(folder.iterdir())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_of_the_files_makes_no_difference(everything, data):
    order = data.draw(st.permutations(everything))
    assert _facts(_stack(UID, order)) == _facts(_stack(UID, everything))
