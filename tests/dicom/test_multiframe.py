"""Enhanced multi-frame files: geometry from the functional groups, or from nothing at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from tests.support.acquisition import PLANES, Acquisition, acquire, rotation
from tests.support.cached import CachedImage, cached, run
from tests.support.pattern import Pattern, anatomy
from tests.support.pixels import JPEG_LOSSLESS, Storage
from tests.support.series import new_uid, numbers, write_multiframe
from tests.support.truth import assert_frame, assert_shows


def _pattern(acquisition: Acquisition, modality: str = "MR") -> Pattern:
    return anatomy(acquisition.centre, acquisition.extent_mm, 300.0 if modality == "CT" else 700.0)


@pytest.mark.parametrize("order", ["in order", "reversed", "shuffled"])
@pytest.mark.parametrize("plane", PLANES)
def test_frames_lie_where_the_functional_groups_say(tmp_path, plane, order):
    stack = acquire(plane, gap_mm=1.5, spacing_mm=(0.8, 1.1), slices=20)
    frames = {"in order": np.arange(20), "reversed": np.arange(20)[::-1]}.get(
        order, np.random.default_rng(2).permutation(20)
    )
    write_multiframe(tmp_path / "s", stack.take(frames), _pattern(stack))
    image = cached(tmp_path / "s")
    assert_frame(image)
    assert_shows(image, stack, _pattern(stack))
    assert image.meta["source"]["shape"] == [20, 32, 28]


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_every_frame_has_a_rescale_of_its_own(tmp_path, modality):
    stack = acquire(slices=12)
    storages = [Storage(16, 16, signed=True, slope=0.5 + 0.03 * i, intercept=20.0 * i - 100) for i in range(12)]
    pattern = _pattern(stack, modality)
    write_multiframe(tmp_path / "s", stack, pattern, modality=modality, storage=storages)
    assert_shows(cached(tmp_path / "s"), stack, pattern)


@pytest.mark.parametrize("keyword", ["PixelValueTransformationSequence", "RealWorldValueMappingSequence"])
def test_an_empty_item_of_a_frame_does_not_hide_what_all_frames_share(tmp_path, keyword):
    hu = Dataset()
    hu.CodeValue = "[hnsf'U]"
    shared = Dataset()
    if keyword == "PixelValueTransformationSequence":
        shared.RescaleSlope, shared.RescaleIntercept, shared.RescaleType = "0.5", "-300", "HU"
    else:
        shared.RealWorldValueSlope, shared.RealWorldValueIntercept = 0.5, -300.0
        shared.MeasurementUnitsCodeSequence = [hu]

    def edit(dataset: Dataset) -> None:
        setattr(dataset.SharedFunctionalGroupsSequence[0], keyword, [shared])

    def edit_frame(frame: Dataset, _index: int) -> None:
        del frame.PixelValueTransformationSequence
        setattr(frame, keyword, [Dataset()])

    stack = acquire(slices=12)
    storage = Storage(16, 16, signed=True, slope=0.5, intercept=-300.0)
    pattern = _pattern(stack, "CT")
    write_multiframe(tmp_path / "s", stack, pattern, modality="CT", storage=storage, edit=edit, edit_frame=edit_frame)
    assert_shows(cached(tmp_path / "s"), stack, pattern)


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRBigEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEG_LOSSLESS],
    ids=lambda uid: uid.name,
)
def test_compressed_frames_keep_their_places(tmp_path, syntax):
    stack = acquire(slices=12).take(np.random.default_rng(1).permutation(12))
    write_multiframe(tmp_path / "s", stack, _pattern(stack), syntax=syntax)
    assert_shows(cached(tmp_path / "s"), stack, _pattern(stack))


def test_tilt_gaps_and_obliqueness_hold_for_frames_too(tmp_path):
    steps = np.random.default_rng(9).uniform(0.7, 2.0, 21)
    turn = rotation((1, 0.2, 0.5), 10)
    stack = acquire(offsets_mm=[0, *np.cumsum(steps)], tilt_deg=13, turn=turn, shape=(42, 38))
    shuffled = stack.take(np.random.default_rng(1).permutation(22))
    write_multiframe(tmp_path / "s", shuffled, _pattern(stack))
    assert_shows(cached(tmp_path / "s"), stack, _pattern(stack))


def test_geometry_that_every_frame_repeats_is_read_too(tmp_path):
    """Orientation and measures per frame instead of shared: both are legal."""
    stack = acquire("sagittal", slices=16)

    def edit(dataset: Dataset) -> None:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            frame.PixelMeasuresSequence = DicomSequence([shared.PixelMeasuresSequence[0]])
            frame.PlaneOrientationSequence = DicomSequence([shared.PlaneOrientationSequence[0]])
        dataset.SharedFunctionalGroupsSequence = DicomSequence([Dataset()])

    write_multiframe(tmp_path / "s", stack, _pattern(stack), edit=edit)
    assert_shows(cached(tmp_path / "s"), stack, _pattern(stack))


def test_a_scout_frame_of_another_orientation_is_dropped(tmp_path):
    stack, scout = acquire(slices=20), acquire("coronal", slices=2)
    both = Acquisition(
        stack.row_direction, stack.column_direction, np.concatenate([scout.positions, stack.positions]),
        stack.spacing_mm, stack.shape,
    )  # fmt: skip
    pattern = _pattern(stack)
    values = np.concatenate([np.full((2, 32, 28), 1500.0), stack.sample(pattern)])

    def edit_frame(frame: Dataset, index: int) -> None:
        item = Dataset()
        item.ImageOrientationPatient = numbers((scout if index < 2 else stack).orientation)
        frame.PlaneOrientationSequence = DicomSequence([item])

    def edit(dataset: Dataset) -> None:
        del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence

    write_multiframe(tmp_path / "s", both, values, edit=edit, edit_frame=edit_frame)
    image = cached(tmp_path / "s")
    assert_shows(image, stack, pattern)
    assert "minority_dropped" in image.codes


@pytest.mark.parametrize(
    "frames, gap_mm",
    [pytest.param(90, 0.55, id="more than 80 frames"), pytest.param(12, 5.0, id="few frames")],
)
@pytest.mark.parametrize("compressed", [False, True], ids=["native", "compressed"])
def test_a_file_stripped_of_all_geometry_falls_back_to_documented_values(tmp_path, frames, gap_mm, compressed):
    """0.5 mm in plane, 0.55 or 5 mm across, axial, in the stored order; the fallback is on record."""
    shape = (40, 48)
    stack = acquire(slices=frames, gap_mm=gap_mm, spacing_mm=(0.5, 0.5), shape=shape)
    pattern = _pattern(stack)
    options = {"syntax": RLELossless} if compressed else {}
    write_multiframe(tmp_path / "s", stack, pattern, stripped=True, **options)
    image = cached(tmp_path / "s")
    assert_frame(image)
    extent = np.array([frames * gap_mm, 20, 24])
    assert image.stored.shape == tuple(np.ceil(extent - 1e-6).astype(int))
    assert np.allclose(image.meta["source"]["spacing_mm"], [gap_mm, 0.5, 0.5])
    assert any("fallback" in code for code in image.codes), image.meta["decisions"]
    # Where in the room it lay can't be known; within itself, everything must be in place.
    offset = image.lps((np.array(image.stored.shape) - 1) / 2) - stack.centre
    there = acquire(slices=frames, gap_mm=gap_mm, spacing_mm=(0.5, 0.5), shape=shape, middle=stack.centre + offset)
    assert_shows(image, there, anatomy(there.centre, stack.extent_mm, 700.0))


def test_a_stripped_file_takes_the_pixel_datas_length_for_the_number_of_frames(tmp_path):
    stack = acquire(slices=14, gap_mm=5, spacing_mm=(0.5, 0.5), shape=(40, 48))
    path = write_multiframe(tmp_path / "s", stack, _pattern(stack), stripped=True).paths[0]
    assert "NumberOfFrames" not in pydicom.dcmread(path)
    assert cached(tmp_path / "s").meta["source"]["shape"] == [14, 40, 48]


def classic(folder: Path, stack: Acquisition, pattern: Pattern, **elements: object) -> None:
    """One multi-frame CT file without functional groups: what is said is said once, at the top level."""

    def edit(dataset: Dataset) -> None:
        del dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence
        dataset.ImagePositionPatient = numbers(stack.positions[0])
        dataset.ImageOrientationPatient = numbers(stack.orientation)
        dataset.PixelSpacing = numbers(stack.spacing_mm)
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)

    write_multiframe(folder, stack, pattern, modality="CT", edit=edit)


def detail(image: CachedImage, code: str) -> str:
    (found,) = [d["detail"] for d in image.meta["decisions"] if d["code"] == code]
    return found


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    "says",
    [{"SliceThickness": 1.5}, {"SpacingBetweenSlices": 1.5}, {"SliceThickness": 4.0, "SpacingBetweenSlices": 1.5}],
    ids=lambda says: " and ".join(says),
)
def test_what_the_top_level_says_wins_over_the_fallback(tmp_path, says, plane):
    stack = acquire(plane, slices=20, gap_mm=1.5, spacing_mm=(0.8, 1.1))
    classic(tmp_path / "s", stack, _pattern(stack, "CT"), **says)
    image = cached(tmp_path / "s")
    assert_shows(image, stack, _pattern(stack, "CT"))
    assert f"1.5 mm apart ({list(says)[-1]})" in detail(image, "fallback_geometry")
    assert "(ImagePositionPatient)" in detail(image, "fallback_geometry")
    assert ("fallback_orientation" in image.codes) == (plane == "axial"), "the default orientation may be a placeholder"


@pytest.mark.parametrize("reverse", [False, True])
def test_a_vector_of_offsets_places_every_frame(tmp_path, reverse):
    """Uneven, and against the normal: GridFrameOffsetVector counts along it."""
    offsets = [0, *np.cumsum(np.random.default_rng(4).uniform(0.9, 2.0, 19))]
    stack = acquire(offsets_mm=offsets, reverse=reverse)
    vector = numbers((stack.positions - stack.positions[0]) @ stack.normal)
    classic(tmp_path / "s", stack, _pattern(stack, "CT"), GridFrameOffsetVector=vector, SpacingBetweenSlices=5.0)
    image = cached(tmp_path / "s")
    assert_shows(image, stack, _pattern(stack, "CT"))
    assert "(GridFrameOffsetVector)" in detail(image, "fallback_geometry")


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("reverse", [False, True])
def test_slice_locations_count_along_an_axis_of_the_patient(tmp_path, plane, reverse):
    stack = acquire(plane, slices=20, gap_mm=1.5, reverse=reverse)
    axis = np.abs(stack.normal).argmax()
    classic(tmp_path / "s", stack, _pattern(stack, "CT"), SliceLocationVector=numbers(stack.positions[:, axis]))
    assert_shows(cached(tmp_path / "s"), stack, _pattern(stack, "CT"))


@pytest.mark.parametrize(
    "orientation, code", [((1, 0, 0, 0, 1, 0), True), ((0, 1, 0, 0, 0, -1), False)], ids=["default", "sagittal"]
)
def test_one_position_and_the_default_orientation_for_all_frames_are_both_lost(tmp_path, orientation, code):
    stack = acquire(slices=20, gap_mm=1.5)

    def edit(dataset: Dataset) -> None:
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SliceThickness = 1.5
        plane = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        plane.ImageOrientationPatient = list(orientation)

    def edit_frame(frame: Dataset, _index: int) -> None:
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]

    write_multiframe(tmp_path / "s", stack, _pattern(stack), edit=edit, edit_frame=edit_frame)
    image = cached(tmp_path / "s")
    assert image.meta["source"]["spacing_mm"] == [1.5, 1.0, 1.0]
    assert "1.5 mm apart (SliceThickness)" in detail(image, "fallback_geometry")
    assert ("fallback_orientation" in image.codes) == code
    if code:
        assert "counts as lost, too" in detail(image, "fallback_orientation")


def test_positions_win_over_a_spacing_that_lies(tmp_path):
    """As in the challenge's data: 18 mm where positions say 0.498."""
    stack = acquire(slices=40, gap_mm=0.498)

    def edit(dataset: Dataset) -> None:
        dataset.SpacingBetweenSlices = 18.0
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 18.0

    write_multiframe(tmp_path / "s", stack, _pattern(stack), edit=edit)
    image = cached(tmp_path / "s")
    assert_shows(image, stack, _pattern(stack))
    assert "fallback_geometry" not in image.codes


def test_an_orientation_that_is_none_is_one_that_is_absent(tmp_path):
    stack = acquire(slices=20, gap_mm=1.5)
    zeros = {"ImageOrientationPatient": [0] * 6, "SliceThickness": 1.5}
    classic(tmp_path / "s", stack, _pattern(stack, "CT"), **zeros)
    image = cached(tmp_path / "s")
    assert_shows(image, stack, _pattern(stack, "CT"))
    assert "no orientation" in detail(image, "fallback_orientation")


def test_two_enhanced_files_of_one_series_are_not_mixed(tmp_path):
    """The upper and the lower half of one stack, or two volumes: placed rightly, or refused with a reason."""
    stack = acquire(slices=24)
    pattern = _pattern(stack)
    first = write_multiframe(tmp_path / "s", stack.take(range(12)), pattern)

    def edit(dataset: Dataset) -> None:
        dataset.SOPInstanceUID = new_uid("second file")

    write_multiframe(tmp_path / "s", stack.take(range(12, 24)), pattern, uid=first.uid, edit=edit)
    outcome = run(tmp_path / "s")
    if outcome.cached:
        assert_shows(outcome.image(), stack, pattern)
    else:
        assert outcome.reason() == "several_volumes"
