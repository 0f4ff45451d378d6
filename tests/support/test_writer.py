"""The writer itself, read back by pydicom and SimpleITK: a test of the tests."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.support.acquisition import PLANES, acquire, rotation
from tests.support.pattern import anatomy
from tests.support.pixels import JPEG_LOSSLESS, Storage
from tests.support.series import CT, TEST_SET_TAGS, write_multiframe, write_series
from tests.support.trees import mask_image, write_nifti_by_hand


def _by_itk(written) -> sitk.Image:
    normal = written.acquisition.normal
    along = written.acquisition.positions @ normal
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(written.paths[i]) for i in np.argsort(along)])
    return reader.Execute()


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("reverse", [False, True], ids=["along the normal", "against the normal"])
def test_simpleitk_sees_the_pattern_where_it_was_put(tmp_path, plane, reverse):
    acquisition = acquire(plane, slices=9, reverse=reverse, shape=(14, 11), spacing_mm=(1.3, 0.8), gap_mm=2.1)
    pattern = anatomy(acquisition.centre)
    image = _by_itk(write_series(tmp_path / "s", acquisition, pattern))
    for index in [(0, 0, 0), (10, 13, 8), (3, 7, 2), (6, 1, 5)]:
        point = np.array(image.TransformIndexToPhysicalPoint(index))
        assert image[index] == pytest.approx(pattern(point), abs=0.51)


def test_the_pixel_values_are_those_of_the_points(tmp_path):
    acquisition = acquire("axial", slices=5, tilt_deg=17, turn=rotation((1, 2, 3), 11), shape=(9, 13))
    pattern = anatomy(acquisition.centre)
    written = write_series(tmp_path / "s", acquisition, pattern)
    assert len(written.paths) == 5
    for index, path in enumerate(written.paths):
        dataset = pydicom.dcmread(path)
        values = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        assert values[4, 7] == pytest.approx(pattern(acquisition.lps(index, 7, 4)), abs=0.51)
        x_axis, y_axis = np.reshape(np.array(dataset.ImageOrientationPatient, float), (2, 3))
        point = np.array(dataset.ImagePositionPatient, float) + 7 * x_axis + 4 * y_axis
        assert np.allclose(point, acquisition.lps(index, 7, 4), atol=1e-6)


def test_a_tilted_stack_is_sheared_and_its_gap_shrinks_with_the_cosine():
    acquisition = acquire("axial", slices=4, gap_mm=5, tilt_deg=20)
    step = acquisition.positions[1] - acquisition.positions[0]
    assert np.allclose(step, [0, 0, 5])
    assert step @ acquisition.normal == pytest.approx(5 * np.cos(np.deg2rad(20)))
    assert np.cross(step, acquisition.normal)[0] != pytest.approx(0)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless,
     JPEG2000Lossless, JPEG_LOSSLESS],
    ids=lambda uid: uid.name,
)  # fmt: skip
@pytest.mark.parametrize("fragments", [1, 3], ids=["one fragment", "three fragments"])
def test_pydicom_reads_back_every_transfer_syntax(tmp_path, syntax, fragments):
    acquisition = acquire("axial", slices=2, shape=(12, 9))
    pattern = anatomy(acquisition.centre)
    written = write_series(tmp_path / "s", acquisition, pattern, syntax=syntax, fragments=fragments)
    assert len(written.paths) == 2
    for index, path in enumerate(written.paths):
        dataset = pydicom.dcmread(path)
        assert dataset.file_meta.TransferSyntaxUID == syntax
        assert np.array_equal(dataset.pixel_array, CT.store(acquisition.sample(pattern)[index]))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_garbage_stands_only_in_bits_that_mean_nothing(signed):
    storage = Storage(16, 12, 13, signed=signed, garbage=5)
    stored = np.arange(*storage.limits)[None]
    cells = storage.cells(stored)
    kept = (cells.astype(np.int64) >> 2) & 0xFFF
    assert np.array_equal(np.where(signed & (kept >= 2048), kept - 4096, kept), stored)
    assert len(np.unique(cells & 0b11)) == 4
    assert len(np.unique(cells >> 14)) == 4


def test_a_stripped_file_has_the_test_sets_tags_and_no_other(tmp_path):
    written = write_series(tmp_path / "s", acquire(slices=2), np.zeros((2, 32, 28)), stripped=True)
    dataset = pydicom.dcmread(written.paths[0])
    assert {element.keyword for element in dataset} <= TEST_SET_TAGS | {"PixelData"}
    assert "SeriesInstanceUID" not in dataset
    assert len(TEST_SET_TAGS) == 24


def test_a_multiframe_file_holds_each_frame_with_its_position(tmp_path):
    acquisition = acquire("coronal", slices=5, shape=(8, 7)).take([3, 0, 4, 1, 2])
    pattern = anatomy(acquisition.centre, base=600)
    dataset = pydicom.dcmread(write_multiframe(tmp_path / "s", acquisition, pattern).paths[0])
    assert dataset.pixel_array.shape == (5, 8, 7)
    for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        assert dataset.pixel_array[index, 0, 0] == pytest.approx(pattern(position), abs=0.51)


def test_a_nifti_made_by_hand_is_where_simpleitk_says_it_is(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = rotation((0, 1, 1), 30) @ np.diag([1.5, 1.2, 2.0])
    affine[:3, 3] = (-20, 35, 7)
    values = np.random.default_rng(0).integers(0, 14, (5, 6, 7))
    write_nifti_by_hand(tmp_path / "mask.nii", values, affine)
    image = sitk.ReadImage(str(tmp_path / "mask.nii"))
    expected = mask_image(values, affine)
    assert np.array_equal(sitk.GetArrayFromImage(image), values)
    for index in [(0, 0, 0), (6, 5, 4), (2, 3, 1)]:
        ours, its = (np.array(i.TransformIndexToPhysicalPoint(index)) for i in (expected, image))
        assert np.allclose(ours, its, atol=1e-4)
