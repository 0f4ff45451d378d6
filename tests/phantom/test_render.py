"""The rasteriser against volumes that are known in closed form, and the parts of a scene against each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aneurysm.phantom.branches import Branch
from aneurysm.phantom.contrast import ct_noise, rician
from aneurysm.phantom.pose import Pose, random_pose, rotation
from aneurysm.phantom.randomness import Streams
from aneurysm.phantom.render import Renderer
from aneurysm.phantom.scanner import PLANES, Protocol, SliceStack, plan_stack, regular_grid
from aneurysm.phantom.scene import draw_scene
from aneurysm.phantom.shapes import Capsule, Ellipsoid, HalfSpace, SampleGrid, Solid
from aneurysm.phantom.tubes import Canvas, to_segments

STRAIGHT = Pose(np.ones(3), np.eye(3), np.zeros(3))


def _stack(n: int = 40, size: int = 64, pixel: float = 0.5, gap: float = 0.5, shear: float = 0.0) -> SliceStack:
    row, column = PLANES["axial"]
    w = (np.arange(n) - (n - 1) / 2) * gap
    half = (size - 1) / 2 * pixel
    positions = np.stack([np.full(n, -half), -half + shear * w, w], axis=1)
    return SliceStack(positions, row, column, (pixel, pixel), (size, size), gap)


@pytest.mark.parametrize("shear", [0.0, 0.4], ids=["upright", "leaning"])
def test_a_tube_has_the_volume_of_a_round_cone(shear: float) -> None:
    stack = _stack(shear=shear)
    line = np.array([(-8.0, -3, -4), (9, 4, 5)])
    segments = to_segments([Branch("tube", line, np.array([1.5, 2.5]))], STRAIGHT, stack.frame)
    canvas = Canvas(stack.corners_uvw, stack.spacing_mm, stack.shape)
    canvas.draw_segments(segments, 1.0)
    cover = np.clip(0.5 - canvas.distance / 0.5, 0, 1).sum() * 0.5**3
    length = float(np.linalg.norm(line[1] - line[0]))
    cone = np.pi * length / 3 * (1.5**2 + 1.5 * 2.5 + 2.5**2) + 2 / 3 * np.pi * (1.5**3 + 2.5**3)
    assert cover == pytest.approx(cone, rel=0.02)


def test_distances_are_right_where_a_piece_is_drawn_in_its_box() -> None:
    stack = _stack(n=12, size=24, pixel=1.0, gap=1.0)
    a, b, r = np.array((-4.0, -2, -1)), np.array((5.0, 3, 2)), 1.3
    canvas = Canvas(stack.corners_uvw, stack.spacing_mm, stack.shape)
    canvas.draw_segments(to_segments([Branch("t", np.array([a, b]), np.array([r, r]))], STRAIGHT, stack.frame), 2.0)
    compared = 0
    for k, i, j in [(5, 11, 11), (6, 12, 14), (7, 13, 15), (5, 9, 8)]:
        p = stack.point(k, j, i)
        t = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        expected = np.linalg.norm(p - a - t * (b - a)) - r
        if expected < 2.0:
            compared += 1
            assert canvas.distance[k, i, j] == pytest.approx(expected, abs=1e-4)
    assert compared >= 2


def test_solids_are_united_cut_and_bounded() -> None:
    grid = SampleGrid((40, 40, 40), np.eye(3), np.full(3, 20.0))
    solid = Solid(grid).add(Ellipsoid((0, 0, 0), (10, 8, 6))).cut(HalfSpace((0, 0, 0), (0, 0, 1)))
    x, y, z = grid.coordinates(grid.everywhere())
    inside = solid.distance < 0
    # The grid's axes are (w, v, u), the identity maps template x to the first.
    truth = ((x / 10) ** 2 + (y / 8) ** 2 + (z / 6) ** 2 < 1) & (z > 0)
    assert (inside != truth).mean() < 0.002
    rod = Solid(grid).add(Capsule((-5, 0, 0), (5, 0, 0), 2, 2))
    assert float(rod.distance[20, 20, 20]) == pytest.approx(-2, abs=1e-5)


@pytest.fixture(scope="module")
def scene():
    return draw_scene("CTA", ("Left Middle Cerebral Artery",), Streams(2, 0), 1.0)


def _protocol(**changes) -> Protocol:
    return replace(Protocol((72, 72), (3.0, 3.0), 4.0, 4.0, 40.0, 40.0), **changes)


def _render(scene, stack: SliceStack) -> tuple[np.ndarray, np.ndarray]:
    renderer = Renderer(scene, stack, Streams(2, 0)("head"))
    image = np.zeros((len(stack), *stack.shape), np.float32)
    labels = np.zeros(image.shape, np.uint8)
    for k, values, label in renderer.slices(stack):
        image[k], labels[k] = values, label
    return image, labels


def test_a_head_has_bone_brain_fat_and_air(scene) -> None:
    stack = plan_stack(_protocol(), scene.pose, "axial", np.random.default_rng(0))
    image, _ = _render(scene, stack)
    k, x, y = stack.locate(scene.pose.to_lps(np.array([[30.0, 40, 30]]))[0])
    assert 15 < image[k, round(y), round(x)] < 60, "brain"
    assert image[:, 0, 0].max() < -900, "air beside the head"
    assert (image > 700).mean() > 0.01, "bone"


def test_planes_show_the_same_head(scene) -> None:
    samples = scene.pose.to_lps(np.random.default_rng(1).uniform((-50, -20, -10), (50, 80, 45), (200, 3)))
    values = {}
    for plane in PLANES:
        protocol = _protocol(shape=(90, 90), gap_mm=3.0, thickness_mm=3.0, below_mm=75, above_mm=75)
        stack = plan_stack(protocol, scene.pose, plane, np.random.default_rng(0))
        image, _ = _render(scene, stack)
        at = [stack.locate(p) for p in samples]
        values[plane] = np.array([image[k, round(y), round(x)] for k, x, y in at])
    # The convolutions are drawn on the scanner's grid, so brain differs; bone against brain must not.
    for plane in ("sagittal", "coronal"):
        bone = values["axial"] > 500
        assert np.mean(bone == (values[plane] > 500)) > 0.95


def test_left_is_left(scene) -> None:
    stack = plan_stack(_protocol(shape=(144, 144), pixel_mm=(1.5, 1.5), gap_mm=2.0), scene.pose, "axial",
                       np.random.default_rng(0))  # fmt: skip
    _, labels = _render(scene, stack)
    for value, sign in ((10, 1), (9, -1)):
        k, i, j = np.nonzero(labels == value)
        points = stack.positions_lps[k] + np.outer(j * 1.5, stack.row) + np.outer(i * 1.5, stack.column)
        side = (points - scene.pose.origin_lps) @ scene.pose.left
        assert np.median(side) * sign > 10


def test_chunks_make_no_difference(scene, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = plan_stack(_protocol(thickness_mm=6.0), scene.pose, "axial", np.random.default_rng(0), tilt_deg=15)
    image, labels = _render(scene, stack)
    monkeypatch.setattr("aneurysm.phantom.render._CHUNK_VOXELS", 100_000)
    again, more = _render(scene, stack)
    # The canvas counts from the middle of a chunk, so the last bits of a distance may differ, and at a joint of two
    # thin pieces the other one may win: nothing that is visible.
    assert np.abs(again - image).max() < 3
    assert np.abs(again - image).mean() < 0.01
    assert (labels != more).mean() < 1e-4


def test_thick_slices_are_the_mean_of_thin_ones(scene) -> None:
    thick = _stack(n=1, size=120, pixel=1.4)
    thick = replace(thick, positions_lps=thick.positions_lps + scene.pose.origin_lps, thickness_mm=4.0)
    thin = replace(
        thick,
        positions_lps=thick.positions_lps + np.outer([-1.5, -0.5, 0.5, 1.5], thick.normal),
        thickness_mm=1.0,
    )
    renderer = Renderer(scene, thin, Streams(2, 0)("head"))
    image = np.stack([v for _, v, _ in renderer.slices(thin)])
    ((_, mean, _),) = renderer.slices(thick)
    assert np.abs(image.mean(axis=0) - mean).max() < 0.05


def test_a_tilted_stack_covers_the_points_it_must() -> None:
    pose = random_pose(np.random.default_rng(4))
    points = pose.to_lps(np.array([[0.0, 0, -70], [10, 20, 90]]))
    for tilt in (0.0, 20.0, -20.0):
        stack = plan_stack(_protocol(), pose, "axial", np.random.default_rng(0), tilt_deg=tilt, cover_lps=points)
        for point in points:
            k, x, y = stack.locate(point)
            assert abs((stack.point(k, x, y) - point) @ stack.normal) <= 2.0 + 1e-6
            assert np.linalg.norm(stack.point(k, x, y) - point) == pytest.approx(
                abs((stack.point(k, x, y) - point) @ stack.normal), abs=1e-6
            )


def test_a_regular_grid_covers_its_stack() -> None:
    stack = plan_stack(
        _protocol(), random_pose(np.random.default_rng(1)), "axial", np.random.default_rng(0), tilt_deg=18
    )
    grid = regular_grid(stack, 2.0)
    for k in (0, len(stack) - 1):
        for x, y in ((0, 0), (71, 71)):
            n, gx, gy = grid.locate(stack.point(k, x, y))
            assert -0.01 <= gx <= grid.shape[1] - 1 + 1.01
            assert -0.01 <= gy <= grid.shape[0] - 1 + 1.01
            assert abs((grid.point(n, gx, gy) - stack.point(k, x, y)) @ grid.normal) <= 2.0


def test_noise_is_of_the_right_kind() -> None:
    rng = np.random.default_rng(0)
    ct = ct_noise((400, 400), 12.0, rng)
    assert ct.std() == pytest.approx(12, rel=0.02)
    assert np.corrcoef(ct[:, 1:].ravel(), ct[:, :-1].ravel())[0, 1] > 0.5, "neighbours are correlated"
    # Rician: in air the mean is sigma times the root of pi / 2.
    air = rician(np.zeros((400, 400), np.float32), 0.03, rng)
    assert air.min() >= 0
    assert air.mean() == pytest.approx(0.03 * np.sqrt(np.pi / 2), rel=0.02)


def test_streams_depend_on_names_not_on_order() -> None:
    a, b = Streams(1, 2), Streams(1, 2)
    first = a("pose").normal()
    b("vessels").normal()
    assert b("pose").normal() == first
    assert Streams(1, 3)("pose").normal() != first
    assert Streams(1, 2)("noise", 1).normal() != Streams(1, 2)("noise", 2).normal()


def test_rotations_are_rotations() -> None:
    turn = rotation((10, -20, 30))
    assert np.allclose(turn @ turn.T, np.eye(3))
    assert np.linalg.det(turn) == pytest.approx(1)
