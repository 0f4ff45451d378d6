"""The files of a series: what the headers say leads back to the truth, and every syntax holds the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from aneurysm.phantom.dicom_writer import TEST_TAGS
from aneurysm.phantom.plan import SeriesPlan, plan_series
from aneurysm.phantom.series import WrittenSeries, write_series

SITES = ("Left Middle Cerebral Artery", "Basilar Tip")


def _write(tmp_path: Path, **arguments) -> tuple[SeriesPlan, WrittenSeries, list[Path]]:
    plan = plan_series(11, 0, **{"size": "tiny", "modality": "MRI T2", "sites": SITES, **arguments})
    written = write_series(plan, tmp_path)
    return plan, written, sorted((tmp_path / "series" / plan.uid).glob("*.dcm"))


def _pixels(files: list[Path]) -> dict[str, np.ndarray]:
    return {ds.SOPInstanceUID: ds.pixel_array for ds in map(pydicom.dcmread, files)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    _, _, files = _write(tmp_path_factory.mktemp("plain"))
    return _pixels(files)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("implicit", "Implicit VR Little Endian"),
        ("big_endian", "Explicit VR Big Endian"),
        ("deflated", "Deflated Explicit VR Little Endian"),
        ("rle", "RLE Lossless"),
        ("jpeg_lossless", "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])"),
        ("jpeg_ls", "JPEG-LS Lossless Image Compression"),
        ("jpeg2000", "JPEG 2000 Image Compression (Lossless Only)"),
    ],
)
def test_every_transfer_syntax_holds_the_same_pixels(tmp_path: Path, plain: dict, syntax: str, name: str) -> None:
    _, _, files = _write(tmp_path, quirks=(syntax,))
    first = pydicom.dcmread(files[0])
    assert first.file_meta.TransferSyntaxUID.name == name
    found = _pixels(files)
    assert found.keys() == plain.keys()
    assert all(np.array_equal(found[uid], plain[uid]) for uid in plain)


def test_files_without_preamble_hold_the_same_pixels(tmp_path: Path, plain: dict) -> None:
    _, _, files = _write(tmp_path, quirks=("no_preamble",))
    assert files[0].read_bytes()[128:132] != b"DICM"
    for path in files:
        ds = pydicom.dcmread(path, force=True)
        stored = np.frombuffer(ds.PixelData, "<i2" if ds.PixelRepresentation else "<u2")
        assert np.array_equal(stored.reshape(ds.Rows, ds.Columns), plain[ds.SOPInstanceUID])


def test_monochrome1_is_stored_inverted(tmp_path: Path, plain: dict) -> None:
    _, _, files = _write(tmp_path, quirks=("monochrome1",))
    assert files
    for path in files:
        ds = pydicom.dcmread(path)
        assert ds.PhotometricInterpretation == "MONOCHROME1"
        limit = -1 if ds.PixelRepresentation else 2**ds.BitsStored - 1
        assert np.array_equal(limit - ds.pixel_array.astype(int), plain[ds.SOPInstanceUID])


def test_slices_of_different_slope_rescale_to_the_same_values(tmp_path: Path, plain: dict) -> None:
    _, _, files = _write(tmp_path, quirks=("slice_rescale",))
    slopes = set()
    for path in files:
        ds = pydicom.dcmread(path)
        slopes.add(float(ds.RescaleSlope))
        rescaled = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        limit = (2**ds.BitsStored - 1) * float(ds.RescaleSlope)
        assert np.abs(rescaled - np.minimum(plain[ds.SOPInstanceUID], limit)).max() <= 0.5 + 0.5 * float(
            ds.RescaleSlope
        )
    assert len(slopes) == len(files)


def test_ct_values_are_hu_after_the_rescale_that_the_fault_does_not_need(tmp_path: Path) -> None:
    air = {}
    for quirks in ((), ("padding",), ("already_hu",)):
        _, _, files = _write(tmp_path, modality="CTA", quirks=quirks)
        ds = pydicom.dcmread(files[len(files) // 2])
        intercept = 0 if quirks == ("already_hu",) else float(ds.RescaleIntercept)
        assert quirks != ("already_hu",) or float(ds.RescaleIntercept) == -1024
        stored = ds.pixel_array
        if quirks == ("padding",):
            assert stored[0, 0] == ds.PixelPaddingValue == -2000
            assert np.count_nonzero(stored == -2000) == pytest.approx(stored.size * (1 - np.pi / 4), rel=0.1)
            stored = stored[stored != -2000]
        hu = stored + intercept
        air[quirks] = np.percentile(hu, 5)
        assert hu.max() > 700
    assert max(air.values()) < -900


def test_the_test_set_keeps_its_25_tags_only(tmp_path: Path) -> None:
    _, _, files = _write(tmp_path, quirks=("test_tags",))
    for path in files:
        ds = pydicom.dcmread(path)
        assert {e.keyword for e in ds} <= TEST_TAGS
        assert "SeriesInstanceUID" not in ds
    assert len(TEST_TAGS) == 25


@pytest.mark.parametrize(
    "quirks",
    [
        (),
        ("descending", "oblique"),
        ("sagittal", "non_square"),
        ("coronal", "unequal_pixels"),
        ("missing_slices", "lying_spacing", "scrambled_numbers"),
        ("jittered_gaps", "scouts", "stray_files"),
        ("marked_duplicate",),
        ("echoes",),
    ],
    ids=lambda q: "-".join(q) or "plain",
)
def test_a_mark_leads_through_its_header_to_the_truth(tmp_path: Path, quirks: tuple[str, ...]) -> None:
    _, written, files = _write(tmp_path, quirks=quirks)
    headers = {ds.SOPInstanceUID: ds for ds in (pydicom.dcmread(f, stop_before_pixels=True) for f in files)}
    assert len(written.localizers) == len(SITES)
    for lesion in written.truth.lesions:
        ds = headers[lesion.sop_uid]
        position, orientation = np.array(ds.ImagePositionPatient, float), np.array(ds.ImageOrientationPatient, float)
        between_rows, between_columns = (float(v) for v in ds.PixelSpacing)
        point = position + orientation[:3] * lesion.x * between_columns + orientation[3:] * lesion.y * between_rows
        assert np.linalg.norm(point - lesion.point_lps) < 0.01
        off = point - np.array(lesion.center_lps)
        across = off @ np.cross(orientation[:3], orientation[3:])
        assert np.linalg.norm(off) == pytest.approx(abs(across), abs=0.01), "off across the slices only"
        assert abs(across) <= written.truth.gap_mm * 0.6 + 0.01


def test_gantry_tilt_shears_the_stack_and_the_marks_follow(tmp_path: Path) -> None:
    _, written, files = _write(tmp_path, modality="CTA", quirks=("tilt",))
    headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in files]
    orientation = np.array(headers[0].ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    places = np.array([ds.ImagePositionPatient for ds in headers], float)
    travel = places[-1] - places[0]
    assert np.degrees(np.arccos(abs(travel @ normal) / np.linalg.norm(travel))) > 5
    for lesion in written.truth.lesions:
        ds = next(h for h in headers if h.SOPInstanceUID == lesion.sop_uid)
        point = np.array(ds.ImagePositionPatient, float)
        point += orientation[:3] * lesion.x * float(ds.PixelSpacing[1])
        point += orientation[3:] * lesion.y * float(ds.PixelSpacing[0])
        assert np.linalg.norm(point - lesion.center_lps) <= written.truth.gap_mm / 2 + 0.01


@pytest.mark.parametrize("quirk", ["multiframe", "shuffled_frames"])
def test_frames_of_an_enhanced_file_know_their_place(tmp_path: Path, quirk: str) -> None:
    _, written, files = _write(tmp_path, quirks=(quirk, "jpeg_ls"))
    (path,) = files
    ds = pydicom.dcmread(path)
    assert "ImagePositionPatient" not in ds
    assert ds.pixel_array.shape == (written.truth.slices, ds.Rows, ds.Columns)
    spacing = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    for lesion in written.truth.lesions:
        group = ds.PerFrameFunctionalGroupsSequence[lesion.frame]
        orientation = np.array(group.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        point = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        point += orientation[:3] * lesion.x * float(spacing[1]) + orientation[3:] * lesion.y * float(spacing[0])
        assert np.linalg.norm(point - lesion.point_lps) < 0.01
    z = [g.PlanePositionSequence[0].ImagePositionPatient[2] for g in ds.PerFrameFunctionalGroupsSequence]
    assert (sorted(z) in (z, z[::-1])) == (quirk == "multiframe")


def test_a_stripped_file_has_no_geometry_but_the_assumed_one_fits(tmp_path: Path) -> None:
    _, written, (path,) = _write(tmp_path, quirks=("stripped_multiframe",))
    ds = pydicom.dcmread(path)
    assert {e.keyword for e in ds} <= TEST_TAGS - {"ImagePositionPatient", "PixelSpacing"}
    assert len(ds.PixelData) == 2 * ds.Rows * ds.Columns * written.truth.slices
    assert not written.truth.patient_space
    for lesion in written.truth.lesions:
        assert lesion.point_lps == pytest.approx((lesion.x * 0.5, lesion.y * 0.5, lesion.frame * 5.0), abs=1e-6)


@pytest.mark.parametrize("quirks", [("mask",), ("nested_mask", "tilt"), ("regridded_mask", "sagittal")], ids=str)
def test_masks_are_placed_by_their_affine(tmp_path: Path, quirks: tuple[str, ...]) -> None:
    plan, written, _ = _write(tmp_path, modality="CTA", quirks=quirks)
    folder = tmp_path / "segmentations" / (plan.uid if "nested_mask" in quirks else "")
    mask = sitk.ReadImage(str(folder / f"{plan.uid}_cowseg.nii"))
    image = sitk.ReadImage(str(folder / f"{plan.uid}.nii"))
    assert mask.GetSize() == image.GetSize()
    assert mask.GetOrigin() == image.GetOrigin()
    for lesion in written.truth.lesions:
        index = mask.TransformPhysicalPointToIndex(lesion.point_lps)
        assert mask[index] == lesion.value
    values = sitk.GetArrayFromImage(mask)
    assert set(np.unique(values)) <= set(range(14))
    assert {1, 2, 5, 6, 7, 8, 9, 10, 11, 12} <= set(np.unique(values))
    # Contrast-filled lumen lies under the mask, in the image beside it.
    assert np.median(sitk.GetArrayFromImage(image)[values == 5]) > 150
    own = (written.truth.columns, written.truth.rows, written.truth.slices)
    assert (sorted(mask.GetSize()) == sorted(own)) == (quirks == ("mask",))


def test_strays_and_others_are_in_the_folder_and_not_in_the_truth(tmp_path: Path) -> None:
    plan, written, files = _write(tmp_path, quirks=("scouts", "stray_files"))
    folder = tmp_path / "series" / plan.uid
    assert (folder / "README.txt").is_file()
    datasets = [pydicom.dcmread(f) for f in files]
    assert sum("PixelData" not in ds for ds in datasets) == 1
    assert sum(ds.SeriesInstanceUID != plan.uid for ds in datasets) == 1
    assert sum(ds.get("Rows") == 96 and "LOCALIZER" in ds.ImageType for ds in datasets if "Rows" in ds) == 2
    assert len(files) == written.truth.slices + 4


def test_an_unmarked_and_a_wrongly_marked_aneurysm(tmp_path: Path) -> None:
    _, written, _ = _write(tmp_path, quirks=("no_localizer",))
    assert [t.mark for t in written.truth.lesions] == ["missing", "exact"]
    assert [row[3] for row in written.localizers] == [SITES[1]]
    _, written, files = _write(tmp_path, quirks=("unknown_image",))
    assert written.localizers[0][1] not in {f.stem for f in files}
    _, written, _ = _write(tmp_path, sites=SITES[:1], quirks=("same_point",))
    assert written.localizers[0][1:3] == written.localizers[1][1:3]
    assert written.localizers[0][3] != written.localizers[1][3]
