"""A bright spot in a DICOM series is in its overlay: at the same pixel, at the same point of space."""

from __future__ import annotations

import errno
import gzip
import struct
from functools import cache

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from aneurysm.errors import NoSpaceError
from aneurysm.inference.lesion_map import LesionMap, source_affine, source_planes
from aneurysm.inference.overlays import Overlays
from aneurysm.inference.predictor import Member, Predictor
from aneurysm.inference.read_series import read_path
from aneurysm.inference.routing import Route
from aneurysm.labels import LABELS
from aneurysm.patches.views.view import Box
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.spec import load_spec
from aneurysm.windows.predict import WindowOptions
from tests.support.acquisition import acquire, rotation
from tests.support.brightest import Brightest
from tests.support.pattern import level_but_one, lone_blob
from tests.support.series import write_multiframe, write_series

SPEC = load_spec("rsna-1mm")

SITE = LABELS.index("Left Middle Cerebral Artery")
NAME = "left-middle-cerebral-artery"
STRAIGHT = [
    pytest.param({"plane": "axial", "spacing_mm": (0.9, 0.7)}, id="axial"),
    pytest.param({"plane": "axial", "reverse": True, "gap_mm": 1.4}, id="feet first in time"),
    pytest.param({"plane": "coronal", "reverse": True}, id="coronal"),
    pytest.param({"plane": "sagittal", "turn": rotation([1, 2, 3], 17), "gap_mm": 1.3}, id="oblique sagittal"),
]
BENT = [
    pytest.param({"plane": "axial", "tilt_deg": 15.0, "gap_mm": 1.5}, id="tilted"),
    pytest.param({"plane": "axial", "offsets_mm": [*range(12), *range(13, 37, 2)]}, id="uneven slices"),
]


@cache
def predictor():
    """One for all tests: its process that reads DICOM takes a second to start."""
    return Predictor([Member(Brightest(), Route(SPEC), WindowOptions(Box((16, 24, 24)), map_label=SITE))])


def predicted(folder):
    return predictor()(folder)


def nifti(path):
    """Header fields and voxels, by the standard: (i, j, k) probabilities, affine to RAS, codes of the forms."""
    content = gzip.decompress(path.read_bytes())
    assert struct.unpack_from("<i", content, 0) == (348,)
    assert content[344:348] == b"n+1\0"
    dim = struct.unpack_from("<8h", content, 40)
    datatype, bits = struct.unpack_from("<2h", content, 70)
    assert (dim[0], datatype, bits) == (3, 2, 8)
    offset, slope, intercept = struct.unpack_from("<3f", content, 108)
    assert (offset, intercept) == (352, 0)
    assert content[123] == 2  # millimetres
    affine = np.eye(4)
    affine[:3] = np.reshape(struct.unpack_from("<12f", content, 280), (3, 4))
    stored = np.frombuffer(content, np.uint8, offset=352).reshape(dim[3], dim[2], dim[1]).transpose()
    return stored * slope, affine, struct.unpack_from("<2h", content, 252)


def written(tmp_path, acquisition, point, **options):
    series = write_series(tmp_path / "dicom", acquisition, lone_blob(point, height=600.0), uid="1.2.3", **options)
    prediction = predicted(tmp_path / "dicom")
    Overlays(tmp_path / "maps", LABELS[SITE]).write("1.2.3", prediction.lesion_map)
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == [
        f"1.2.3-{NAME}-cached.nii.gz",
        f"1.2.3-{NAME}-source.nii.gz",
    ]
    return series, prediction


def middle(values):
    """Centre of mass of the blob that the model sees: it answers above 0.01 within some millimetres of the spot."""
    weights = np.where(values > 0.05, values, 0)
    return np.array([(weights * grid).sum() / weights.sum() for grid in np.indices(values.shape)])


@pytest.mark.parametrize("layout", [*STRAIGHT, *BENT])
def test_the_spot_is_at_its_pixel_and_its_point(tmp_path, layout):
    acquisition = acquire(**layout)
    index, column, row = 9, 11, 20
    point = acquisition.lps(index, column, row)
    _, prediction = written(tmp_path, acquisition, point)
    slices = np.argsort(acquisition.positions @ acquisition.normal).tolist()
    ras = point * [-1, -1, 1]

    values, affine, _ = nifti(tmp_path / "maps" / f"1.2.3-{NAME}-source.nii.gz")
    assert values.shape == (acquisition.shape[1], acquisition.shape[0], len(acquisition))
    assert np.allclose(middle(values), [column, row, slices.index(index)], atol=0.35)
    assert values[column, row, slices.index(index)] > 0.9 * values.max()
    if "offsets_mm" not in layout:
        assert np.linalg.norm((affine @ [*middle(values), 1])[:3] - ras) < 0.4
        # Every corner of the series, to the last micrometre that single precision has.
        for k in (0, len(acquisition) - 1):
            for i, j in ((0, 0), (acquisition.shape[1] - 1, acquisition.shape[0] - 1)):
                corner = acquisition.lps(slices[k], i, j) * [-1, -1, 1]
                assert np.allclose((affine @ [i, j, k, 1])[:3], corner, atol=1e-3)

    values, affine, codes = nifti(tmp_path / "maps" / f"1.2.3-{NAME}-cached.nii.gz")
    assert codes == (1, 1)
    assert np.linalg.norm((affine @ [*middle(values), 1])[:3] - ras) < 0.4
    assert np.allclose(values, prediction.lesion_map.values.transpose(), atol=0.51 / 255)


def test_left_is_left(tmp_path):
    """DICOM's x grows to the patient's left, NIfTI's to the right."""
    acquisition = acquire("axial", middle=(0.0, 0.0, 0.0))
    point = np.array([8.0, -6.0, 3.5])  # left, anterior, superior
    written(tmp_path, acquisition, point)
    for grid in ("source", "cached"):
        values, affine, _ = nifti(tmp_path / "maps" / f"1.2.3-{NAME}-{grid}.nii.gz")
        right, anterior, superior = (affine @ [*middle(values), 1])[:3]
        assert (right, anterior, superior) == pytest.approx((-8.0, 6.0, 3.5), abs=0.4)


@pytest.mark.parametrize("layout", STRAIGHT)
def test_itk_puts_the_file_where_it_puts_the_dicom_series(tmp_path, layout):
    acquisition = acquire(**layout)
    written(tmp_path, acquisition, acquisition.lps(9, 11, 20))
    reader = sitk.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(tmp_path / "dicom"))
    reader.SetFileNames(names)
    dicom = reader.Execute()
    ours = sitk.ReadImage(str(tmp_path / "maps" / f"1.2.3-{NAME}-source.nii.gz"))
    assert ours.GetSize() == dicom.GetSize()
    assert np.allclose(ours.GetOrigin(), dicom.GetOrigin(), atol=1e-3)
    assert np.allclose(ours.GetSpacing(), dicom.GetSpacing(), atol=1e-5)
    assert np.allclose(ours.GetDirection(), dicom.GetDirection(), atol=1e-5)
    # The spot of the map lies on the spot of the series.
    brightest = np.unravel_index(sitk.GetArrayFromImage(dicom).argmax(), ours.GetSize()[::-1])
    seen = sitk.GetArrayFromImage(ours)
    assert seen[brightest] > 0.9 * seen.max()
    cached = sitk.ReadImage(str(tmp_path / "maps" / f"1.2.3-{NAME}-cached.nii.gz"))
    at = cached.TransformPhysicalPointToIndex(dicom.TransformIndexToPhysicalPoint([int(v) for v in brightest[::-1]]))
    assert cached[at] > 0.7 * sitk.GetArrayViewFromImage(cached).max()


def test_a_tilt_is_in_the_affine_and_not_in_the_quaternion(tmp_path):
    acquisition = acquire("axial", tilt_deg=15.0, gap_mm=1.5)
    written(tmp_path, acquisition, acquisition.lps(9, 11, 20))
    _, affine, codes = nifti(tmp_path / "maps" / f"1.2.3-{NAME}-source.nii.gz")
    assert codes == (0, 1)
    step = affine[:3, 2]
    assert np.degrees(np.arccos(step @ np.cross(affine[:3, 0], affine[:3, 1]) / 1.5)) == pytest.approx(15, abs=0.01)


def test_positions_that_are_rounded_are_no_tilt(tmp_path):
    acquisition = acquire("axial", slices=30)
    acquisition.positions[:, 0] += np.random.default_rng(0).uniform(-0.01, 0.01, 30)
    written(tmp_path, acquisition, acquisition.lps(9, 11, 20))
    assert nifti(tmp_path / "maps" / f"1.2.3-{NAME}-source.nii.gz")[2] == (1, 1)


def test_a_multiframe_file_has_a_source_grid_too(tmp_path):
    acquisition = acquire("axial")
    write_multiframe(tmp_path / "1.2.3", acquisition, lone_blob(acquisition.lps(7, 12, 15), sigma_mm=2.0))
    lesions = predicted(tmp_path / "1.2.3").lesion_map
    values = np.stack([*source_planes(lesions)])
    assert np.allclose(middle(values), [7, 15, 12], atol=0.35)


def test_between_thick_slices_nothing_is_lost(tmp_path):
    acquisition = acquire("axial", slices=8, gap_mm=6.0)
    write_series(tmp_path / "1.2.3", acquisition, lone_blob(acquisition.centre), uid="1.2.3")
    read = read_path(SeriesSource("1.2.3", tmp_path / "1.2.3"), SPEC)
    values = np.zeros(read.volume.shape, np.float32)
    to_voxels = np.linalg.inv(read.volume.affine_lps)
    between = to_voxels @ [*(acquisition.lps(3, 14, 16) + 2.6 * acquisition.normal), 1.0]
    z, y, x = between[:3].round().astype(int)
    values[z, y, x] = 1.0
    planes = np.stack([*source_planes(LesionMap(values, read.volume.affine_lps, read.stack))])
    assert planes[3].max() > 0.2
    assert [k for k in range(8) if planes[k].max() > 0] == [3]
    assert np.unravel_index(planes[3].argmax(), planes[3].shape) == (16, 14)


@given(
    angle=st.floats(-40, 40),
    plane=st.sampled_from(["axial", "coronal", "sagittal"]),
    gap_mm=st.floats(0.5, 3.0),
    spacing=st.tuples(st.floats(0.4, 1.5), st.floats(0.4, 1.5)),
    reverse=st.booleans(),
)
def test_any_map_is_sampled_at_the_pixels_own_points(tmp_path_factory, angle, plane, gap_mm, spacing, reverse):
    """A map that grows evenly along each axis of the patient, so that the value at a pixel tells its point."""
    acquisition = acquire(
        plane, slices=6, shape=(9, 7), gap_mm=gap_mm, spacing_mm=spacing, reverse=reverse,
        turn=rotation([1, -2, 0.5], angle),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("any")
    write_series(folder, acquisition, level_but_one((6, 9, 7), 40.0), uid="1.2.3")
    read = read_path(SeriesSource("1.2.3", folder), SPEC)
    indices = np.stack([*np.indices(read.volume.shape), np.ones(read.volume.shape)], -1)
    points = indices @ read.volume.affine_lps.T
    affine = source_affine(read.stack)
    order = np.argsort(acquisition.positions @ acquisition.normal)
    for axis in range(3):
        lesions = LesionMap(points[..., axis].astype(np.float32), read.volume.affine_lps, read.stack)
        planes = np.stack([*source_planes(lesions)])
        assert planes.shape == (6, 9, 7)
        expected = acquisition.take(order).points()[..., axis]
        j, i, k = 4, 3, 2
        assert (affine @ [i, j, k, 1])[axis] == pytest.approx(expected[k, j, i], abs=1e-3)
        if gap_mm <= 1:  # else the highest of a slice's share is shown
            # At the rim values stay level beyond the middle of the outermost voxel.
            assert np.abs(planes - expected)[1:-1, 2:-2, 2:-2].max() < 1.0
            assert abs(planes[k, j, i] - expected[k, j, i]) < 0.01


def test_each_part_of_a_series_has_a_source_grid_of_its_own(tmp_path):
    """By the same map: the value at a pixel of the tilted part tells its point, and its file's affine agrees."""
    upper = acquire(slices=16, gap_mm=3.0, shape=(40, 40), spacing_mm=(1.5, 1.5), middle=(0, 0, 40))
    lower = acquire(slices=12, gap_mm=1.0, shape=(36, 40), spacing_mm=(1.5, 1.5), tilt_deg=15.0, middle=(0, 0, 8.0))
    for number, block in enumerate((upper, lower)):
        values = level_but_one((len(block), *block.shape), 40.0)
        write_series(tmp_path / "s", block, values, uid="1.2.3", label=str(number), first_number=99 * number)
    read = read_path(SeriesSource("1.2.3", tmp_path / "s"), SPEC)
    (part,) = read.stack.others
    indices = np.stack([*np.indices(read.volume.shape), np.ones(read.volume.shape)], -1)
    points = indices @ read.volume.affine_lps.T
    expected = lower.take(np.argsort(lower.positions @ lower.normal)).points()
    affine = source_affine(part)
    for axis in range(3):
        lesions = LesionMap(points[..., axis].astype(np.float32), read.volume.affine_lps, read.stack)
        planes = np.stack([*source_planes(lesions, part)])
        inside = np.s_[1:-1, 3:-3, 3:-3]
        assert np.abs(planes[inside] - np.maximum(expected[..., axis], 0)[inside]).max() < 0.6
        assert (affine @ [4, 3, 2, 1])[axis] == pytest.approx(expected[2, 3, 4, axis], abs=1e-3)
    Overlays(tmp_path / "maps", LABELS[SITE]).write("1.2.3", lesions)
    assert nifti(tmp_path / "maps" / f"1.2.3-{NAME}-source.nii.gz")[0].shape == (40, 40, 16)
    assert nifti(tmp_path / "maps" / f"1.2.3-{NAME}-source-2.nii.gz")[0].shape == (40, 36, 12)


def test_a_run_that_is_stopped_leaves_no_half_a_file(tmp_path, monkeypatch):
    acquisition = acquire("axial")
    write_series(tmp_path / "dicom", acquisition, lone_blob(acquisition.centre), uid="1.2.3")
    lesions = predicted(tmp_path / "dicom").lesion_map
    overlays = Overlays(tmp_path / "maps", LABELS[SITE])

    def stopped(_lesions, _part):
        yield np.zeros(acquisition.shape, np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr("aneurysm.inference.overlays.source_planes", stopped)
    with pytest.raises(KeyboardInterrupt):
        overlays.write("1.2.3", lesions)
    assert list((tmp_path / "maps").iterdir()) == []
    assert not overlays.has("1.2.3")


def test_a_full_disk_is_told_and_leaves_no_half_a_file(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    overlays = Overlays(tmp_path, LABELS[SITE])
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(NoSpaceError, match=r"is full\. Free some space, and the same command writes what is missing"):
        overlays.write("1.2", LesionMap(np.zeros((2, 3, 4), np.float32), np.eye(4), None))
    assert list(tmp_path.iterdir()) == []


def test_a_uid_is_no_path(tmp_path):
    lesions = LesionMap(np.zeros((2, 3, 4), np.float32), np.eye(4), None)
    Overlays(tmp_path / "maps", LABELS[SITE]).write("../evil", lesions)
    (path,) = (tmp_path / "maps").iterdir()
    assert path.name.startswith("invalid-")
    assert [p.name for p in tmp_path.iterdir()] == ["maps"]


def test_the_same_map_has_the_same_bytes(tmp_path):
    lesions = LesionMap(np.random.default_rng(0).random((2, 3, 4), np.float32), np.eye(4), None)
    for name in ("a", "b"):
        Overlays(tmp_path / name, LABELS[SITE]).write("1.2", lesions)
    first, second = ((tmp_path / name / f"1.2-{NAME}-cached.nii.gz").read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("cam", [False, True])
@pytest.mark.parametrize("label", LABELS)
def test_a_file_says_what_it_shows(tmp_path, label, cam):
    Overlays(tmp_path, label, cam=cam).write("1.2", LesionMap(np.zeros((2, 3, 4), np.float32), np.eye(4), None))
    (path,) = tmp_path.iterdir()
    assert path.name == f"1.2-{label.lower().replace(' ', '-')}{'-cam' * cam}-cached.nii.gz"
    said = gzip.decompress(path.read_bytes())[148:228].rstrip(b"\0").decode()
    assert said == f"{'Grad-CAM' if cam else 'probability'} of {label}; not for clinical use"
    assert not Overlays(tmp_path, label, cam=not cam).has("1.2")
