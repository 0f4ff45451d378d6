"""From a pixel to the patient and back, on planes of any orientation, spacing and place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.annotations.frames import SourceFrame
from aneurysm.annotations.image_plane import image_pixel, patient_point

number = st.floats(-1000, 1000)
spacing = st.floats(0.05, 10)


@st.composite
def images(draw):
    """Orthogonal axes from two angles, as files have them: rounded to six digits."""
    a, b = draw(st.floats(-np.pi, np.pi)), draw(st.floats(-np.pi, np.pi))
    across = np.array([np.cos(a), np.sin(a), 0.0])
    down = np.cos(b) * np.array([-np.sin(a), np.cos(a), 0.0]) + np.sin(b) * np.array([0.0, 0.0, 1.0])
    orientation = tuple(np.round([*across, *down], 6).tolist())
    place = (draw(number), draw(number), draw(number))
    return SourceFrame(0, 0, 1, place, orientation, (draw(spacing), draw(spacing)), 512, 512, "")


@settings(deadline=None)
@given(images(), st.floats(-50, 2000), st.floats(-50, 2000), st.floats(-100, 100))
def test_a_pixel_comes_back_also_from_beside_its_plane(image, column, row, beside_mm):
    point = patient_point(image, column, row)
    normal = np.cross(image.orientation[:3], image.orientation[3:])
    assert image_pixel(image, tuple(point + beside_mm * normal)) == pytest.approx((column, row), abs=0.01)


def test_columns_go_along_the_first_axis_by_the_second_spacing():
    """Tags of DICOM are (rows, columns) here, and (x, y) there: the two must not be mixed up."""
    sagittal = SourceFrame(0, 0, 1, (10.0, -20.0, 30.0), (0, 1, 0, 0, 0, -1), (2.0, 0.5), 64, 64, "")
    assert patient_point(sagittal, 4, 3).tolist() == [10.0, -18.0, 24.0]
    assert image_pixel(sagittal, (99.0, -18.0, 24.0)) == (4.0, 3.0)


@pytest.mark.parametrize("lacking", ["position", "orientation", "spacing_mm"])
def test_an_image_that_does_not_say_where_it_lies_has_no_such_point(lacking):
    values = {"position": (0.0, 0.0, 0.0), "orientation": (1, 0, 0, 0, 1, 0), "spacing_mm": (1.0, 1.0)}
    image = SourceFrame(0, 0, 1, **(values | {lacking: None}), rows=8, columns=8, left_out="")
    assert patient_point(image, 1, 1) is None
    assert image_pixel(image, (0.0, 0.0, 0.0)) is None
