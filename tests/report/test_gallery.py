"""Cases of the gallery: which are chosen, and that marks lie where lesions and candidates are."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from aneurysm.report.evaluate import evaluate
from aneurysm.report.evaluation import EvaluateOptions
from aneurysm.report.gallery import FIELD_MM, choose_cases, draw_case, draw_gallery
from aneurysm.report.marks import CANDIDATE_COLOUR, LESION_COLOUR

# z, y and x have other spacings and origins; x runs to the left.
AFFINE = np.array([[0, 0, 0.5, -40], [0, 1.0, 0, -50], [2.0, 0, 0, 10], [0, 0, 0, 1]])


def voxels_with(zyx, value=1000.0, shape=(50, 100, 160)):
    voxels = np.zeros(shape, np.float32)
    voxels[tuple(zyx)] = value
    return voxels


def lps(zyx):
    return (AFFINE @ [*zyx, 1])[:3]


def middle_of(axes, colour):
    """The middle of the marks of one colour, (x, y) in mm of the picture."""
    points = [np.c_[line.get_data()] for line in axes.lines if to_hex(line.get_color()) == colour]
    return (np.concatenate(points).min(axis=0) + np.concatenate(points).max(axis=0)) / 2


@pytest.mark.parametrize("modality", ["CTA", "MRA"])
def test_marks_lie_on_the_voxel_that_shines(modality):
    lesion, candidate = (20, 60, 50), (22, 66, 70)
    voxels = voxels_with(lesion) + voxels_with(candidate)
    figure = draw_case(voxels, AFFINE, modality, lps(lesion), lps(lesion)[None], lps(candidate))
    assert len(figure.axes) == 3
    for axes in figure.axes:
        image = axes.images[0]
        shown, (left, right, bottom, top) = np.asarray(image.get_array()), image.get_extent()
        rows, columns = shown.shape
        bright = [(left + (c + 0.5) / columns * (right - left), top + (r + 0.5) / rows * (bottom - top))
                  for r, c in np.argwhere(shown > 500)]  # fmt: skip
        assert len(bright) == 2
        for mark in (middle_of(axes, LESION_COLOUR), middle_of(axes, CANDIDATE_COLOUR)):
            assert min(np.linalg.norm(np.array(b) - mark) for b in bright) < 0.1
        # The lesion is in the middle of the field.
        np.testing.assert_allclose(np.mean(axes.get_xlim()), middle_of(axes, LESION_COLOUR)[0])
        assert abs(np.diff(axes.get_xlim())[0]) == FIELD_MM


def test_the_patients_left_is_on_the_right():
    lesion, further_left = (20, 60, 50), (20, 60, 90)
    assert lps(further_left)[0] > lps(lesion)[0]
    figure = draw_case(voxels_with(lesion), AFFINE, "CTA", lps(lesion), lps(lesion)[None], lps(further_left))
    axial, coronal, _ = figure.axes
    for axes in (axial, coronal):
        assert middle_of(axes, CANDIDATE_COLOUR)[0] - middle_of(axes, LESION_COLOUR)[0] == pytest.approx(20)


def test_what_lies_outside_of_the_slab_is_broken():
    lesion, above = (20, 60, 50), (30, 60, 50)  # 20 mm higher
    figure = draw_case(voxels_with(lesion), AFFINE, "CTA", lps(lesion), lps(lesion)[None], lps(above))
    axial, coronal, _ = figure.axes
    styles = [
        {line.get_linestyle() for line in axes.lines if to_hex(line.get_color()) == CANDIDATE_COLOUR}
        for axes in (axial, coronal)
    ]
    assert styles == [{"--"}, {"-"}]


def test_vessels_of_t2_are_dark():
    voxels = 1000 - voxels_with((20, 60, 50))
    figure = draw_case(voxels, AFFINE, "MRI T2", lps((20, 60, 50)), np.empty((0, 3)), None)
    assert np.asarray(figure.axes[0].images[0].get_array()).min() == 0


def test_the_surest_of_each_kind_come_first(report_cache, cached_run):
    found = evaluate([cached_run], options=EvaluateOptions(samples=50))
    chosen = choose_cases(found, 5)
    p = found.predictions
    scores, truth, called = p.probabilities[:, 13], p.truth[:, 13], found.operation.called[:, 13]
    for kind, y, decision in (("found", 1, 1), ("missed", 1, 0), ("false", 0, 1), ("clear", 0, 0)):
        mine = np.array(chosen[kind], int)
        assert (truth[mine] == y).all()
        assert (called[mine] == decision).all()
        expected = np.sort(scores[(truth == y) & (called == decision)])
        expected = expected[::-1][:5] if decision else expected[:5]
        np.testing.assert_array_equal(scores[mine], expected)


def test_a_damaged_volume_costs_its_picture_only(report_cache, cached_run):
    found = evaluate([cached_run], options=EvaluateOptions(samples=50))
    first = choose_cases(found, 1)["found"][0]
    uid = str(found.predictions.uids[first])
    shard = report_cache.volume(uid).path / "0" / "c" / "0" / "0" / "0"
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[: len(whole) // 2])
        from aneurysm.cache.volume import close_volumes

        close_volumes()
        case = draw_gallery(found, 1)["found"][0]
    finally:
        shard.write_bytes(whole)
        close_volumes()
    assert case.uid == uid
    assert case.picture is None
    assert uid in case.problem
