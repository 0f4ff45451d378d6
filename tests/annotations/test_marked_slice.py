"""The image of a marked point: which one it is, where the point lies in it, and that it shows what is there."""

from __future__ import annotations

import numpy as np
import pytest

from aneurysm.annotations.marked_slice import MarkedSlice, marked_slice, read_marked_slices
from aneurysm.dicom.content import HeadersOnly
from aneurysm.dicom.stack import stack_frames
from aneurysm.errors import SeriesRejectedError
from aneurysm.rawdata.folder import safe_source
from aneurysm.rawdata.tables import Localizer
from aneurysm.spec import load_spec
from tests.support.acquisition import acquire
from tests.support.series import write_multiframe, write_series

SPEC = load_spec("rsna-1mm")
UID = "1.2.3.4"
STACK = acquire("axial", slices=6, shape=(24, 20), spacing_mm=(2.0, 1.0), gap_mm=3.0)
SIGNAL = np.zeros((6, 24, 20))
SIGNAL[:, 4:20, 4:16] = 100.0
SIGNAL[2, 9, 13] = 900.0
"""A bright pixel in the third slice: row 9, column 13."""


def point(sop: str, x: float = 13.0, y: float = 9.0, frame: int | None = None, problem: str = "") -> Localizer:
    return Localizer(2, UID, sop, "Basilar Tip", x, y, frame, problem)


def shown(folder, *points: Localizer) -> MarkedSlice:
    (found,) = read_marked_slices([(safe_source(UID, folder), points)], SPEC)
    assert isinstance(found, MarkedSlice), found
    return found


def test_the_image_of_the_first_usable_point_and_all_points_in_it(tmp_path):
    sops = write_series(tmp_path / "s", STACK, SIGNAL, uid=UID, modality="MR").sops
    found = shown(
        tmp_path / "s", point("1.9.9"), point(sops[4], problem="no point"), point(sops[2]), point(sops[3]),
        point(sops[2], 5.0, 6.0),
    )  # fmt: skip
    assert (found.number, found.slices, found.spacing_mm) == (3, 6, (2.0, 1.0))
    assert found.points == (("Basilar Tip", 13.0, 9.0), ("Basilar Tip", 5.0, 6.0))
    assert np.unravel_index(found.grey.argmax(), found.grey.shape) == (9, 13)
    assert (found.grey[0, 0], found.grey[9, 13]) == (0, 255)
    assert found.right == (1.0, 0.0, 0.0)
    assert found.down == (0.0, 1.0, 0.0)


def test_a_frame_of_a_file_with_many(tmp_path):
    (sop,) = write_multiframe(tmp_path / "s", STACK, SIGNAL, uid=UID).sops
    assert shown(tmp_path / "s", point(sop, frame=2)).number == 3
    assert shown(tmp_path / "s", point(sop, frame=2)).grey.argmax() == 9 * 20 + 13


def test_without_a_point_the_middle_slice(tmp_path):
    write_series(tmp_path / "s", STACK, SIGNAL, uid=UID, modality="MR")
    found = shown(tmp_path / "s")
    assert (found.number, found.points) == (4, ())


def test_ct_is_shown_by_a_fixed_window_and_by_its_values_where_that_shows_nothing(tmp_path):
    hu = np.full((6, 24, 20), -1000.0)
    hu[:, 4:20, 4:16] = 40.0
    hu[:, 4, 4:16] = 1200.0
    write_series(tmp_path / "ct", STACK, hu, uid=UID)
    grey = shown(tmp_path / "ct").grey
    assert (grey[0, 0], grey[4, 5]) == (0, 255)
    assert grey[10, 10] == pytest.approx(255 * 140 / 700, abs=1)


def test_large_images_are_thinned_out_and_points_stay_on_their_pixel(tmp_path):
    stack = acquire("axial", slices=5, shape=(1600, 40), spacing_mm=(0.1, 1.0), gap_mm=3.0)
    signal = np.full((5, 1600, 40), 10.0)
    signal[:, 0] = 0.0
    signal[:, 1497:1503, 27:33] = 500.0
    sops = write_series(tmp_path / "s", stack, signal, uid=UID, modality="MR").sops
    found = shown(tmp_path / "s", point(sops[1], 30.0, 1500.0))
    assert found.grey.shape == (534, 14)
    assert found.spacing_mm == pytest.approx((0.3, 3.0))
    (_, x, y), bright = found.points[0], np.argwhere(found.grey == 255).mean(axis=0)
    assert (y, x) == pytest.approx(tuple(bright), abs=0.5)


def test_what_can_t_be_shown_is_said(tmp_path):
    written = write_series(tmp_path / "s", STACK, np.full((6, 24, 20), 7.0), uid=UID, modality="MR")
    (found,) = read_marked_slices([(safe_source(UID, tmp_path / "s"), ())], SPEC)
    assert found == "no_signal: all pixels of the image have one value"
    series = safe_source(UID, tmp_path / "s").read_headers()
    stack = stack_frames(series.frames, SPEC.slices, HeadersOnly())
    for path in written.paths:
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SeriesRejectedError, match="unreadable_pixels"):
        marked_slice(stack, series.frames, (), ct=False)
    (tmp_path / "empty").mkdir()
    (found,) = read_marked_slices([(safe_source(UID, tmp_path / "empty"), ())], SPEC)
    assert isinstance(found, str)
    assert found.startswith("no_files: ")
