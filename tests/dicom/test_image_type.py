"""Projections, localizers and reformats among the slices, known by their ImageType, or else by their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

from tests.support.acquisition import Acquisition, acquire
from tests.support.cached import CachedImage, cached, rejected, run
from tests.support.pattern import Blob, Pattern, anatomy
from tests.support.series import new_uid, write_multiframe, write_series
from tests.support.truth import assert_shows

UID = new_uid("image type")
STACK = acquire(slices=24, gap_mm=2.0)
PATTERN = anatomy(STACK.centre, STACK.extent_mm, 700.0)
KINDS = [
    pytest.param(["DERIVED", "SECONDARY", "PROJECTION IMAGE", "COLLAPSE"], id="collapsed"),
    pytest.param(["DERIVED", "SECONDARY", "MIP"], id="MIP"),
    pytest.param(["DERIVED", "PRIMARY", "PROJECTION IMAGE", "M", "MNIP"], id="MinIP"),
    pytest.param(["DERIVED", "SECONDARY", "MAX_IP"], id="MAX_IP"),
    pytest.param(["ORIGINAL", "PRIMARY", "LOCALIZER"], id="localizer"),
    pytest.param(["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"], id="average"),
    pytest.param(["DERIVED", "PRIMARY", "MPR", "ND", "NORM"], id="MPR"),
    pytest.param(["DERIVED", "SECONDARY", "CSA MPR"], id="CSA MPR"),
]
PLACES = {"between two": 11.5, "above": 24.0, "below": -1.0, "on a slice": 5.0, "far above": 26.5}


def _at(gaps: float, n: int = 1) -> Acquisition:
    """``n`` images that many gaps from the first slice, and one gap from each other."""
    corner = STACK.positions[0]
    step = STACK.positions[1] - corner
    return Acquisition(
        STACK.row_direction,
        STACK.column_direction,
        np.array([corner + step * (gaps + k) for k in range(n)]),
        STACK.spacing_mm,
        STACK.shape,
    )


def _typed(image_type: list[str]):
    def edit(dataset: Dataset, index: int) -> None:
        dataset.ImageType = image_type

    return edit


def _projection() -> np.ndarray:
    return STACK.sample(PATTERN).max(0)[None]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("image_type", KINDS)
def test_one_among_originals_is_left_out_wherever_it_lies(tmp_path, image_type, place):
    write_series(tmp_path / "s", STACK, PATTERN, uid=UID, modality="MR")
    write_series(
        tmp_path / "s", _at(PLACES[place]), _projection(), uid=UID, modality="MR", label="mip", edit=_typed(image_type)
    )
    image = cached(tmp_path / "s")
    assert "projections_dropped" in image.codes
    assert image.meta["source"]["shape"][0] == 24
    assert_shows(image, STACK, PATTERN)


@pytest.mark.parametrize(
    "image_type, decision",
    [
        (["ORIGINAL", "PRIMARY", "MPR"], set()),
        (["DERIVED", "SECONDARY", "REFORMATTED"], set()),
        (["DERIVED", "SECONDARY", "AXIAL"], set()),
        (["DERIVED", "SECONDARY", "MIP"], {"projection_volume"}),
        (["DERIVED", "SECONDARY", "MINIP"], {"projection_volume"}),
    ],
    ids=str,
)
def test_a_whole_series_of_one_kind_stays_what_it_is_and_says_so(tmp_path, image_type, decision):
    write_series(tmp_path / "s", STACK, PATTERN, uid=UID, edit=_typed(image_type))
    image = cached(tmp_path / "s")
    assert image.codes == decision
    assert_shows(image, STACK, PATTERN)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_localizers_alone_are_no_volume(tmp_path, modality):
    write_series(tmp_path / "s", STACK, PATTERN, modality=modality, edit=_typed(["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    assert rejected(tmp_path / "s") == "only_localizers"


def test_more_localizers_than_slices_are_left_out(tmp_path):
    slices = STACK.take(range(8))
    write_series(tmp_path / "s", slices, PATTERN, uid=UID)
    scouts = acquire("sagittal", slices=12, gap_mm=3)
    edit = _typed(["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "s", scouts, PATTERN, uid=UID, label="scouts", edit=edit)
    image = cached(tmp_path / "s")
    assert image.codes == {"projections_dropped"}
    assert image.meta["source"]["shape"][0] == 8


def test_projections_among_reformats_are_left_out_and_the_reformats_stay(tmp_path):
    write_series(tmp_path / "s", STACK, PATTERN, uid=UID, edit=_typed(["DERIVED", "SECONDARY", "REFORMATTED"]))
    values = np.repeat(_projection(), 3, axis=0)
    edit = _typed(["DERIVED", "SECONDARY", "REFORMATTED", "MIP"])
    write_series(tmp_path / "s", _at(24.0, 3), values, uid=UID, label="mip", edit=edit)
    image = cached(tmp_path / "s")
    assert image.codes == {"projections_dropped"}
    assert_shows(image, STACK, PATTERN)


def test_frames_of_a_multiframe_file_have_a_type_of_their_own(tmp_path):
    both = STACK.take([*range(24), 11])
    values = np.concatenate([STACK.sample(PATTERN), _projection()])

    def edit_frame(frame: Dataset, index: int) -> None:
        kind = Dataset()
        kind.FrameType = ["DERIVED", "PRIMARY", "PROJECTION IMAGE", "NONE"] if index == 24 else ["ORIGINAL", "PRIMARY"]
        frame.MRImageFrameTypeSequence = [kind]

    write_multiframe(tmp_path / "s", both, values, edit_frame=edit_frame)
    image = cached(tmp_path / "s")
    assert "projections_dropped" in image.codes
    assert_shows(image, STACK, PATTERN)


# Each slice shows other anatomy than the next, as in a head: blobs that come and go.
HEAD = acquire(slices=30, gap_mm=2.0, shape=(40, 40))
COMING_AND_GOING = Pattern(
    HEAD.centre,
    100.0,
    (0.0, 0.0, 0.0),
    (),
    tuple(
        Blob(tuple(HEAD.centre + np.array(at)), 900.0, 7.0)
        for at in ((9, -8, -24), (-8, 5, -14), (6, 9, -3), (-9, -9, 6), (8, -3, 15), (-3, 9, 25))
    ),
)


class TestWithoutImageType:
    """As in the test set of the challenge: 25 tags, and nothing but geometry and pixels to go by."""

    def _image(self, folder, gaps: float, values: np.ndarray) -> CachedImage:
        write_series(folder, HEAD, COMING_AND_GOING, uid=UID, modality="MR", stripped=True)
        step = HEAD.positions[1] - HEAD.positions[0]
        positions = np.array([HEAD.positions[0] + step * (gaps + k) for k in range(len(values))])
        other = Acquisition(HEAD.row_direction, HEAD.column_direction, positions, HEAD.spacing_mm, HEAD.shape)
        write_series(folder, other, values, uid=UID, modality="MR", stripped=True, label="other", first_number=60)
        return cached(folder)

    @pytest.mark.parametrize("gaps", [10.5, 10.3, 30.0, -1.0, 30.6], ids="at {}".format)
    @pytest.mark.parametrize("how", ["max", "mean"])
    def test_a_projection_is_left_out(self, tmp_path, gaps, how):
        values = getattr(HEAD.sample(COMING_AND_GOING), how)(0)[None]
        image = self._image(tmp_path / "s", gaps, values)
        assert image.codes == {"foreign_slices"}
        assert image.meta["source"]["shape"][0] == 30
        assert_shows(image, HEAD, COMING_AND_GOING)

    def test_two_projections_beyond_the_end_are_left_out(self, tmp_path):
        values = np.repeat(HEAD.sample(COMING_AND_GOING).max(0)[None], 2, axis=0)
        image = self._image(tmp_path / "s", 30.0, values)
        assert image.codes == {"foreign_slices"}
        assert_shows(image, HEAD, COMING_AND_GOING)

    @pytest.mark.parametrize("gaps", [4.5, 21.5])
    def test_an_image_of_something_else_between_two_slices_is_left_out(self, tmp_path, gaps):
        values = np.zeros((1, 40, 40))
        values[0, 3:9] = 1500
        image = self._image(tmp_path / "s", gaps, values)
        assert image.codes == {"foreign_slices"}
        assert_shows(image, HEAD, COMING_AND_GOING)

    def test_of_a_slice_and_a_projection_at_one_place_the_slice_is_taken(self, tmp_path):
        image = self._image(tmp_path / "s", 13.0, HEAD.sample(COMING_AND_GOING).max(0)[None])
        assert image.codes == {"duplicate_positions"}
        assert_shows(image, HEAD, COMING_AND_GOING)

    @pytest.mark.parametrize("gaps", [10.5, 10.3, 30.0, -1.0])
    def test_one_more_slice_of_the_same_anatomy_is_a_slice(self, tmp_path, gaps):
        step = HEAD.positions[1] - HEAD.positions[0]
        place = Acquisition(
            HEAD.row_direction,
            HEAD.column_direction,
            HEAD.positions[:1] + step * gaps,
            HEAD.spacing_mm,
            HEAD.shape,
        )
        image = self._image(tmp_path / "s", gaps, place.sample(COMING_AND_GOING))
        assert "foreign_slices" not in image.codes
        assert image.meta["source"]["shape"][0] == 31

    def test_slices_of_noise_are_all_slices(self, tmp_path):
        values = np.random.default_rng(2).uniform(0, 1000, (30, 40, 40))
        write_series(tmp_path / "s", HEAD, values, modality="MR", stripped=True)
        assert cached(tmp_path / "s").codes == set()

    @pytest.mark.parametrize("first", [0, 1])
    def test_empty_slices_at_the_ends_are_slices(self, tmp_path, first):
        values = HEAD.sample(COMING_AND_GOING)
        values[:first] = 0
        values[-2:] = 0
        write_series(tmp_path / "s", HEAD, values, modality="MR", stripped=True)
        image = cached(tmp_path / "s")
        assert image.codes == set()
        assert image.meta["source"]["shape"][0] == 30

    def test_the_whole_slice_beside_an_empty_one_is_a_slice(self, tmp_path):
        """The signal of the last but one is lost: the last must not seem strange for it."""
        values = HEAD.sample(COMING_AND_GOING)
        values[[1, -2]] = 0
        write_series(tmp_path / "s", HEAD, values, modality="MR", stripped=True)
        image = cached(tmp_path / "s")
        assert image.codes == set()
        assert image.meta["source"]["shape"][0] == 30

    def test_brighter_slices_at_the_ends_are_slices(self, tmp_path):
        """Blood that flows into a slab of MR is brighter in its first slices."""
        values = HEAD.sample(COMING_AND_GOING)
        values[:2] *= 2.5
        values[-1] *= 0.4
        write_series(tmp_path / "s", HEAD, values, modality="MR", stripped=True)
        assert cached(tmp_path / "s").codes == set()

    @pytest.mark.parametrize("seed", range(4))
    def test_uneven_stacks_lose_no_slice(self, tmp_path, seed):
        rng = np.random.default_rng(seed)
        offsets = np.cumsum(rng.choice([1.0, 2.0, 3.0, 4.0], 30))
        stack = acquire(offsets_mm=offsets, shape=(40, 40))
        values = stack.sample(COMING_AND_GOING) + rng.normal(0, 40, (30, 40, 40)) + 200
        write_series(tmp_path / "s", stack, np.clip(values, 0, None), modality="MR", stripped=True)
        outcome = run(tmp_path / "s")
        assert outcome.image().codes == {"uneven_slices"}
        assert outcome.image().meta["source"]["shape"][0] == 30

    def test_a_stack_whose_gaps_double_loses_no_slice(self, tmp_path):
        stack = acquire(offsets_mm=[*np.arange(12) * 2.0, *(24 + np.arange(10) * 4.0)], shape=(40, 40))
        write_series(tmp_path / "s", stack, COMING_AND_GOING, modality="MR", stripped=True)
        assert cached(tmp_path / "s").meta["source"]["shape"][0] == 22
