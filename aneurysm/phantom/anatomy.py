"""
The head without its vessels: tissue layers as distance fields on a coarse grid, in the order in which they are painted.

Each layer covers what was painted before it: soft tissue, then fat, muscle, bone, and inside the skull CSF, brain,
ventricles; last the cavities filled with air. All solids are given in template millimetres; a head varies by its pose
(pose.py), by the sizes drawn here, and by its noise fields (convolutions, spongy bone).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from aneurysm.phantom.branches import Tree
from aneurysm.phantom.shapes import Array, Ellipsoid, HalfSpace, SampleGrid, Shape, Solid, tube
from aneurysm.types import Point

Radii = tuple[float, float, float]


@dataclass(frozen=True)
class Layers:
    """
    Distance fields (w, v, u), float32, mm, negative inside; ``fold`` and ``texture`` are noise of unit variance.

    ``fold`` is zero along the sulci and the fissure between the hemispheres; ``midline`` is the template's x.
    """

    skin: Array
    muscle: Array
    bone: Array
    cranium: Array
    brain: Array
    fold: Array
    deep: Array
    grey_nuclei: Array
    ventricle: Array
    gland: Array
    air: Array
    eye: Array
    orbit: Array
    falx: Array
    headrest: Array
    texture: Array
    fold_slope: float


def both(center: Point, radii: Radii, rng: np.random.Generator, jitter_mm: float = 0.6) -> list[Shape]:
    """Return an ellipsoid and its mirror image, each displaced a little by itself."""
    made: list[Shape] = []
    for sign in (1.0, -1.0):
        d = rng.normal(0, jitter_mm, 3)
        made.append(Ellipsoid((sign * center[0] + d[0], center[1] + d[1], center[2] + d[2]), radii))
    return made


def both_tubes(points: list[Point], radii: list[float] | float) -> list[Shape]:
    """Return a tube and its mirror image."""
    made: list[Shape] = []
    for sign in (1.0, -1.0):
        made += tube(np.array(points) * (sign, 1.0, 1.0), radii)
    return made


def build_layers(grid: SampleGrid, tree: Tree, rng: np.random.Generator, step_mm: float, *, ct: bool) -> Layers:
    """Build every layer of one head on the given grid; the large arteries get a cistern, CT a headrest."""
    cranium = _cranium(grid, rng)
    orbit = Solid(grid).add(*both((30, -50, -13), (16.5, 29, 16), rng))
    eye = Solid(grid).add(*both((32, -66, -13), (12, 12.3, 12), rng))
    texture = _smooth_noise(grid.shape, rng, 2.2 / step_mm)
    bone = _bone(cranium, rng)
    air = _air(grid, texture, rng)
    bone.cut(*[Ellipsoid(e, r) for e, r in _ORBIT_CONES], blend_mm=2)
    skin = _skin(grid, rng)
    deep_zone = Solid(grid).add(Ellipsoid((0, 16, 16), (30, 42, 28)), Ellipsoid((0, 34, -18), (14, 18, 30)))
    brain = _brain(grid, cranium, tree)
    fold, slope = _folds(grid, deep_zone, rng, step_mm)
    ventricle = _ventricles(grid, rng)
    falx = Solid(grid).add(Ellipsoid((0, 20, 30), (200, 82, 67))).cut(Ellipsoid((0, 22, 20), (200, 52, 38)))
    falx.cut(HalfSpace((0, 0, 6), (0, -0.1, 1)))
    gland = Solid(grid).add(Ellipsoid((0, 1.5, -2.5), (6, 5, 4)), *tube([(0, 2, 0), (0, 3.5, 9)], 1.2))
    return Layers(
        skin=skin.distance,
        muscle=_muscle(cranium, rng).distance,
        bone=bone.distance,
        cranium=cranium.distance,
        brain=brain.distance,
        fold=fold,
        deep=deep_zone.distance,
        grey_nuclei=_nuclei(grid, rng).distance,
        ventricle=ventricle.distance,
        gland=gland.distance,
        air=air.distance,
        eye=eye.distance,
        orbit=orbit.distance,
        falx=falx.distance,
        headrest=(_headrest(grid) if ct else Solid(grid)).distance,
        texture=texture,
        fold_slope=slope,
    )


_ORBIT_CONES: list[tuple[Point, Radii]] = [
    ((sign * x, y, -13.0), (r, depth, r)) for sign in (1.0, -1.0) for x, y, r, depth in ((30, -52, 16.5, 29),)
]


def _cranium(grid: SampleGrid, rng: np.random.Generator) -> Solid:
    """Build the inside of the skull: a vault over three fossae, and the canal of the spinal cord."""
    vault = Solid(grid).add(Ellipsoid((0, 20, 27), (66, 86, 70)))
    vault.cut(HalfSpace((0, 0, -2.5), (0, 0.02, 1)), blend_mm=7)
    vault.add(*both((35, 3, -5), (25, 34, 18), rng), blend_mm=5)
    vault.add(Ellipsoid((0, 53, -14), (51, 46, 36)), blend_mm=6)
    vault.add(*tube([(0, 34, -42), (0, 37, -58), (0, 40, -90), (0, 42, -200)], [13, 9.5, 8, 8]), blend_mm=5)
    # The sella and the upper clivus stand up between the fossae.
    vault.cut(*tube([(0, 5.5, 0), (0, 8, -8), (0, 13, -30), (0, 18, -44)], [3.0, 5.5, 6, 5]), blend_mm=3)
    return vault


def _skin(grid: SampleGrid, rng: np.random.Generator) -> Solid:
    thickness = float(rng.normal(12.5, 1.0))
    skin = Solid(grid).add(Ellipsoid((0, 20, 24), (66 + thickness, 86 + thickness, 73 + thickness)))
    skin.add(Ellipsoid((0, 42, -22), (61, 62, 46)), blend_mm=20)
    skin.add(Ellipsoid((0, -38, -40), (61, 52, 62)), blend_mm=16)
    skin.add(Ellipsoid((0, -60, -92), (30, 27, 22)), blend_mm=18)
    skin.add(*tube([(0, 30, -50), (0, 32, -110), (0, 38, -220)], [50, 54, 60]), blend_mm=18)
    nose = [*tube([(0, -86, -10), (0, -100, -38)], [6, 8]), Ellipsoid((0, -92, -42), (16, 15, 11))]
    skin.add(*nose, blend_mm=10)
    skin.add(*both((73, 20, -24), (4.5, 11, 19), rng, 1.5), blend_mm=5)
    return skin


def _bone(cranium: Solid, rng: np.random.Generator) -> Solid:
    thickness = float(np.clip(rng.normal(6.5, 0.9), 4.5, 9.0))
    bone = cranium.copy(thickness)
    bone.cut(Ellipsoid((0, 42, -160), (90, 90, 93)))  # Below the base the canal has vertebrae, not a shell.
    bone.add(Ellipsoid((0, -56, -44), (33, 26, 24)), blend_mm=4)  # The upper jaw.
    bone.add(*both((44, -54, -26), (12, 14, 11), rng), blend_mm=4)  # Cheeks.
    bone.add(*both_tubes([(50, -50, -30), (64, -28, -29), (64, 0, -28)], [4, 2.6, 3]), blend_mm=3)
    rim: list[Point] = [(14, -76, -6), (22, -78, 3), (34, -75, 5), (45, -66, 0), (48, -56, -10)]
    bone.add(*both_tubes(rim, 4.0), blend_mm=3)
    bone.add(Ellipsoid((0, -73, 3), (20, 8, 7)), blend_mm=6)  # Brow.
    bone.add(*tube([(0, -84, -8), (0, -94, -24)], [4, 2.5]), blend_mm=3)
    bone.add(*both_tubes([(13, 9, -19), (28, 16, -21), (48, 24, -24)], [6, 9, 11]), blend_mm=4)  # Petrous pyramids.
    bone.add(*both((51, 32, -36), (11, 14, 17), rng), blend_mm=4)  # Mastoids.
    bone.add(*both_tubes([(8, -14, 3), (22, -21, 6), (42, -27, 9)], [2.6, 2.4, 3.0]), blend_mm=2)  # Lesser wings.
    bone.add(*both_tubes([(8.5, -13, 3), (9.5, -7.5, 3.4)], [2.6, 1.8]))  # Anterior clinoid processes.
    bone.add(*tube([(0, 7, 3), (0, 9, -10), (0, 14, -30), (0, 19, -45)], [2.6, 5.5, 6.5, 5]), blend_mm=2)
    bone.add(*both_tubes([(13, -30, -22), (13, -28, -50)], [2.5, 2]), blend_mm=2)  # Pterygoid plates.
    jaw: list[Point] = [(50, 2, -32), (49, 2, -55), (46, -8, -82), (32, -50, -94), (14, -74, -96), (0, -78, -96)]
    bone.add(*both_tubes(jaw, [4.5, 5, 6, 6.5, 7, 7.5]), blend_mm=2)
    angles = np.radians(np.linspace(-80, 80, 13))
    for z, radius in ((-68.0, 3.6), (-79.0, 3.4)):  # Rows of teeth.
        arch = np.stack([26 * np.sin(angles), -46 - 32 * np.cos(angles), np.full(13, z)], axis=1)
        bone.add(*tube(arch, radius))
    _add_spine(bone)
    return bone


def _add_spine(bone: Solid) -> None:
    turn = np.radians(np.linspace(0, 360, 17))
    ring = np.stack([17 * np.sin(turn), 38 - 15 * np.cos(turn), np.full(17, -61.0)], axis=1)
    bone.add(*tube(ring, 3.6))
    for sign in (1.0, -1.0):
        bone.add(Ellipsoid((sign * 19, 34, -60), (8, 9, 8)), blend_mm=3)
    bone.add(*tube([(0, 25, -60), (0, 27, -76)], [4.5, 6]), blend_mm=2)
    for i in range(7):
        y, z = 28 + 0.6 * i, -78.0 - 17 * i
        bone.add(Ellipsoid((0, y, z), (10, 8.5, 7.3)))
        half = np.radians(np.linspace(40, 320, 11))
        arch = np.stack([14 * np.sin(half), y + 13 - 13 * np.cos(half), np.full(11, z - 2)], axis=1)
        bone.add(*tube(arch, 3.4), *tube([(0, y + 26, z - 3), (0, y + 38, z - 8)], [3.2, 2.5]), blend_mm=2)


def _air(grid: SampleGrid, texture: Array, rng: np.random.Generator) -> Solid:
    air = Solid(grid)
    air.add(*both((6, -62, -38), (4, 26, 19), rng), *both((6, -50, -12), (5.0, 23, 9), rng))
    air.add(*both((24, -58, -38), (10.5, 14, 14), rng, 1.5))
    air.add(*both((7, -13, -14), (6.2, 9.5, 7.5), rng, 1.2))
    if rng.random() < 0.8:
        air.add(*both((10, -80, 8), (9, 3.5, 9), rng, 1.5))
    throat = [(0, -20, -42), (0, -4, -52), (0, -1, -72), (0, 0, -100), (0, 3, -125), (0, 6, -210)]
    air.add(*tube(throat, [8, 9, 6, 7, 7, 8]), blend_mm=3)
    air.add(*both_tubes([(80, 10, -25), (48, 13, -22)], [3.2, 2.6]))
    cells = Solid(grid).add(*both((51, 31, -34), (8, 10, 12), rng))
    # Mastoid cells: the bone of the process, hollowed where the noise says so.
    air.distance = np.minimum(air.distance, np.maximum(cells.distance, (0.25 - texture) * 2.5))
    return air


def _brain(grid: SampleGrid, cranium: Solid, tree: Tree) -> Solid:
    """Brain, cerebellum and cord, with the tentorium between them and cisterns around the large arteries."""
    brain = cranium.copy(-2.6)
    brain.cut(Ellipsoid((0, -4, 6), (12, 10, 7)), Ellipsoid((0, 11, 4), (10, 5, 8)), blend_mm=3)
    tent = [(18, 40, 6), (36, 56, -2), (52, 66, -6)]
    brain.cut(*both_tubes([(x, y, z) for x, y, z in tent], [1.6, 1.4, 1.3]), blend_mm=1)
    brain.cut(*tube([(0, 50, 14), (0, 78, 8), (0, 100, 3)], [4, 2, 2]), blend_mm=2)
    for x0, x1 in ((18, 36), (36, 50)):
        for y in (60, 74, 86):
            z = 4 - 0.14 * x1
            brain.cut(*both_tubes([(x0 * 0.8, y, z + 2), (x1 * 0.9, y, z - 2)], 1.4))
    # Around the pons and the medulla, and the clefts of Sylvius.
    brain.cut(*both_tubes([(12, 22, -30), (16, 30, -16), (17, 32, -4)], [4, 3.5, 4]), blend_mm=2)
    brain.cut(*tube([(0, 26, -45), (0, 23, -33), (0, 19, -18), (0, 17, -4)], [6, 4.5, 3.5, 5]), blend_mm=2)
    sylvian: list[Point] = [(18, -5, 12), (30, -6, 12), (39, -2, 15), (44, 10, 20), (50, 22, 25), (58, 34, 30)]
    brain.cut(*both_tubes(sylvian, [4, 4.5, 4, 3, 2.6, 2.2]), blend_mm=2)
    brain.cut(*both_tubes([(40, 2, 18), (41, 4, 34), (41, 20, 30)], [1.8, 1.6, 1.6]))
    for side in ("left", "right"):
        for name in ("a1", "m1", "ica_supra"):
            branch = tree.branches[f"{side}_{name}"]
            brain.cut(*tube(branch.points[::4], branch.radii[::4]), keep_mm=2.2, blend_mm=1)
    cord = tube([(0, 36, -28), (0, 36, -46), (0, 38, -60), (0, 40.5, -90), (0, 42, -200)], [8, 7, 5.5, 5, 5])
    brain.distance = np.where(_below(grid, -47), FAR_OUT, brain.distance)
    return brain.add(*cord, blend_mm=2)


FAR_OUT = np.float32(30.0)


def _below(grid: SampleGrid, z_mm: float) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.asarray(grid.coordinates(grid.everywhere())[2] < z_mm)


def _folds(grid: SampleGrid, deep: Solid, rng: np.random.Generator, step_mm: float) -> tuple[Array, float]:
    """Noise whose zero set looks like sulci, and turns into the mid-plane where the hemispheres meet."""
    wide = _smooth_noise(grid.shape, rng, 3.1 / step_mm)
    slope = 0.30  # 1/mm: the root mean square gradient of that noise, so |fold| / slope is a distance.
    x = grid.coordinates(grid.everywhere())[0]
    z = grid.coordinates(grid.everywhere())[2]
    near = np.clip(1.4 - np.abs(x) / 7.0, 0, 1) * np.clip(deep.distance / 5.0, 0, 1) * np.clip(z / 6.0, 0, 1)
    # The cerebellum's folia are finer and lie flat.
    finer = np.sin(z * np.float32(2 * np.pi / 5.5) + 1.5 * wide).astype(np.float32)
    low = np.clip((-4.0 - z) / 4.0, 0, 1) * np.clip((grid.coordinates(grid.everywhere())[1] - 36) / 6.0, 0, 1)
    fold = wide * (1 - low) + finer * low
    return np.asarray(fold * (1 - near) + x * slope * near, dtype=np.float32), slope


def _smooth_noise(shape: tuple[int, int, int], rng: np.random.Generator, sigma: float) -> Array:
    """Band-passed Gaussian noise of unit variance; ``sigma`` in grid steps."""
    white = rng.standard_normal(shape, dtype=np.float32)
    fine = ndimage.gaussian_filter(white, sigma, mode="wrap")
    coarse = ndimage.gaussian_filter(white, 1.8 * sigma, mode="wrap")
    band = fine - coarse
    return np.asarray(band / np.float32(band.std() + 1e-9), dtype=np.float32)


def _ventricles(grid: SampleGrid, rng: np.random.Generator) -> Solid:
    wide = float(np.clip(rng.normal(1.0, 0.25), 0.6, 1.8))
    v = Solid(grid)
    front: list[Point] = [(11, -24, 26), (7.5, -12, 29), (8, 4, 31.5), (12, 20, 32), (21, 36, 28)]
    v.add(*both_tubes(front, [r * wide for r in (3.0, 3.8, 3.6, 4.2, 5.2)]), blend_mm=2)
    v.add(*both_tubes([(21, 36, 28), (21, 52, 24), (17, 66, 20)], [5.0 * wide, 3.0 * wide, 1.5]), blend_mm=2)
    v.add(*both_tubes([(21, 36, 28), (28, 28, 10), (30, 8, -3)], [5.0 * wide, 2.6, 1.6]), blend_mm=2)
    v.add(Ellipsoid((0, 10, 17), (1.9 * wide, 11, 9)), *tube([(0, 24, 12), (0, 36, -6)], 1.1))
    v.add(Ellipsoid((0, 42, -16), (6.5, 5, 9)), blend_mm=2)
    return v


def _nuclei(grid: SampleGrid, rng: np.random.Generator) -> Solid:
    nuclei = Solid(grid).add(*both((10, 16, 21), (8, 13, 8.5), rng))
    nuclei.add(*both((13, -10, 25), (4.5, 9, 7), rng), *both((25, 0, 19), (5, 16, 9), rng))
    return nuclei


def _muscle(cranium: Solid, rng: np.random.Generator) -> Solid:
    """Muscle, mucosa and glands: most of the face and neck, with pads of fat left between them."""
    muscle = cranium.copy(7.5)
    muscle.cut(Ellipsoid((0, 42, -160), (90, 90, 93)))
    muscle.add(*both((62, -18, -5), (9, 26, 34), rng), blend_mm=4)  # Temporal muscles.
    muscle.add(Ellipsoid((0, -34, -42), (55, 50, 52)), Ellipsoid((0, -58, -86), (25, 24, 20)), blend_mm=8)
    muscle.add(*tube([(0, 26, -50), (0, 28, -110), (0, 34, -220)], [44, 47, 52]), blend_mm=8)
    muscle.add(*both_tubes([(20, 84, -44), (18, 74, -80), (18, 72, -220)], [12, 15, 16]), blend_mm=3)
    pads = [((44, -44, -52), (9, 15, 17)), ((30, -8, -58), (6, 9, 22)), ((24, -30, -34), (7, 12, 9))]
    for center, radii in pads:
        muscle.cut(*both(center, radii, rng, 2.0), blend_mm=5)
    # Sheets of fat between the neck's muscles, and before the throat.
    muscle.cut(*both_tubes([(44, 40, -70), (38, 30, -110), (36, 28, -220)], [4, 4.5, 5]), blend_mm=4)
    muscle.cut(*both_tubes([(24, 56, -70), (26, 58, -220)], 2.5), blend_mm=3)
    return muscle.cut(Ellipsoid((0, -22, -92), (22, 12, 8)), blend_mm=4)


def _headrest(grid: SampleGrid) -> Solid:
    """Build the shell that the head lies in: seen in CT only."""
    rest = Solid(grid).add(Ellipsoid((0, 30, 10), (106, 104, 400)))
    rest.cut(Ellipsoid((0, 30, 10), (103, 101, 410)), HalfSpace((0, 62, 0), (0, 1, 0)))
    return rest
