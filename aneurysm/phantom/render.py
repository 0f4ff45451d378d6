"""
A scene -> the image that a scanner would make of it, slice by slice.

Edges are made at the image's own resolution: the coverage of a voxel falls from 1 to 0 over about one pixel around each
surface, and a slice thicker than a millimetre is the mean of several thin ones, so small vessels are dimmed as partial
volume dims them. Memory is that of a few slices, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.anatomy import Layers, build_layers
from aneurysm.phantom.aneurysms import Sac
from aneurysm.phantom.branches import STEP_MM, Branch, Tree
from aneurysm.phantom.brush import Brush
from aneurysm.phantom.contrast import Flow, Shading, Tissues
from aneurysm.phantom.pose import Points, Pose
from aneurysm.phantom.scanner import SliceStack
from aneurysm.phantom.shapes import Array, SampleGrid
from aneurysm.phantom.tubes import Canvas, to_sac, to_segments

_CHUNK_VOXELS = 4_000_000
"""So many voxels are drawn together: a piece of vessel is visited once for each chunk that it touches."""
_SUB_MM = 1.0
"""Thickness of a thin slice, where pixels are not larger."""


@dataclass(frozen=True)
class Scene:
    """All that is imaged, and how bright it is."""

    modality: str
    pose: Pose
    tree: Tree
    lesions: list[Sac]
    plaques: list[Branch]
    tissues: Tissues
    flow: Flow
    shading: Shading | None


class Renderer:
    """
    Draws a scene on stacks that share one set of axes.

    Parameters
    ----------
    scene
        What to draw.
    stack
        The stack that sets the axes and the room that must be covered.
    rng
        For the head's convolutions and texture.
    """

    def __init__(self, scene: Scene, stack: SliceStack, rng: np.random.Generator) -> None:
        self.scene = scene
        self._frame = stack.frame
        self._step = float(np.clip(2.5 * min(stack.spacing_mm), 2.0, 4.0))
        corners = stack.corners_uvw
        low = corners.min(axis=0) - 2 * self._step
        size = np.array([stack.shape[1] * stack.spacing_mm[1], stack.shape[0] * stack.spacing_mm[0], 0.0])
        high = corners.max(axis=0) + size + 2 * self._step
        pad = stack.thickness_mm
        low[2] -= pad
        high[2] += pad
        n = np.ceil((high - low) / self._step).astype(int) + 2
        self._low = low
        self._grid = self._template_grid((int(n[2]), int(n[1]), int(n[0])))
        self._layers = build_layers(self._grid, scene.tree, rng, self._step, ct=scene.modality == "CTA")
        branches = scene.tree.branches.values()
        # Steps of the centrelines far below a pixel would be drawn for nothing.
        stride = int(np.clip(round(1.2 * max(stack.spacing_mm) / STEP_MM), 1, 3))
        self._arteries = to_segments([b for b in branches if not b.vein], scene.pose, self._frame, stride)
        self._veins = to_segments([b for b in branches if b.vein], scene.pose, self._frame, 2 * stride)
        self._plaques = to_segments(scene.plaques, scene.pose, self._frame)
        self._sacs = [to_sac(lesion, scene.pose, self._frame) for lesion in scene.lesions]
        # For arteries and sacs alike, in the order of the canvas's owners:
        self._radius = np.concatenate([self._arteries.radius, [float(sac.radii.min()) for sac in self._sacs]])
        self._values = np.concatenate([self._arteries.value, np.array([s.value for s in self._sacs], np.uint8)])
        self._brightness = self._blood(_lowest_mm(stack))

    def _template_grid(self, shape: tuple[int, int, int]) -> SampleGrid:
        # Template -> LPS -> (u, v, w) -> index, and the axes in the order (w, v, u).
        pose = self.scene.pose
        to_uvw = self._frame @ pose.matrix / self._step
        offset = (self._frame @ pose.origin_lps - self._low) / self._step
        return SampleGrid(shape, to_uvw[::-1].copy(), offset[::-1].copy())

    def _blood(self, floor_mm: float) -> npt.NDArray[np.float32]:
        """(arteries + sacs,): the signal of the blood in each, by its height above the lowest slice."""
        seg = self._arteries
        centers = np.array([s.center for s in self._sacs]).reshape(-1, 3)
        middle = np.concatenate([(seg.start + seg.stop) / 2, centers])
        height = (middle @ self._frame)[:, 2] - floor_mm
        return self.scene.tissues.artery * self.scene.flow.factor(height, self._radius)

    def slices(self, stack: SliceStack) -> Iterator[tuple[int, Array, npt.NDArray[np.uint8]]]:
        """
        Yield (slice index, image (rows, columns) without noise, vessel mask values), in ascending w.

        ``stack`` has the axes of the one given at the start.
        """
        corners = stack.corners_uvw
        parts = max(1, round(stack.thickness_mm / max(_SUB_MM, 0.7 * max(stack.spacing_mm))))
        offsets = ((np.arange(parts) + 0.5) / parts - 0.5) * stack.thickness_mm
        order = np.argsort(corners[:, 2], kind="stable")
        per_chunk = max(1, _CHUNK_VOXELS // (parts * stack.shape[0] * stack.shape[1]))
        for first in range(0, len(order), per_chunk):
            chosen = order[first : first + per_chunk]
            planes = np.repeat(corners[chosen], parts, axis=0)
            planes[:, 2] += np.tile(offsets, len(chosen))
            # Thick slices may overlap their neighbours, so thin ones are sorted for the canvas and picked by rank.
            rank = np.argsort(planes[:, 2], kind="stable")
            images, labels = self._draw(stack, planes[rank])
            where = np.empty(len(rank), dtype=int)
            where[rank] = np.arange(len(rank))
            for n, k in enumerate(chosen):
                mine = where[n * parts : (n + 1) * parts]
                image = images[mine].mean(axis=0, dtype=np.float32) if parts > 1 else images[mine[0]]
                self._shade(image, stack, corners[k])
                yield int(k), image, labels[mine[parts // 2]]

    def _draw(self, stack: SliceStack, planes: Points) -> tuple[Array, npt.NDArray[np.uint8]]:
        edge = max(1.1 * max(stack.spacing_mm), 0.55)
        images = np.empty((len(planes), *stack.shape), dtype=np.float32)
        for k, corner in enumerate(planes):
            self._tissue(images[k], stack, corner, edge)
        # Arteries run through the cavernous sinus and calcium lies in walls: later layers cover earlier ones.
        canvas = Canvas(planes, stack.spacing_mm, stack.shape)
        canvas.draw_segments(self._veins, edge)
        _blend(images, canvas, np.full(len(self._veins), self.scene.tissues.vein), self._veins.radius, edge)
        canvas.clear()
        canvas.draw_segments(self._arteries, edge)
        for i, sac in enumerate(self._sacs):
            canvas.draw_sac(sac, len(self._arteries) + i, edge)
        _blend(images, canvas, self._brightness, self._radius, edge)
        owners = canvas.vessel_values(self._values)
        if len(self._plaques):
            canvas.clear()
            canvas.draw_segments(self._plaques, edge)
            calcium = np.full(len(self._plaques), self.scene.tissues.calcium)
            _blend(images, canvas, calcium, self._plaques.radius, edge)
        return images, owners

    def _shade(self, image: Array, stack: SliceStack, corner: Points) -> None:
        shading = self.scene.shading
        if shading is None:
            return
        center = self._frame @ self.scene.pose.origin_lps
        u = corner[0] + np.arange(stack.shape[1]) * stack.spacing_mm[1] - center[0]
        v = corner[1] + np.arange(stack.shape[0]) * stack.spacing_mm[0] - center[1]
        image *= shading.along(0, u)
        image *= (shading.along(1, v) * shading.along(2, corner[2:3] - center[2]))[:, None]

    def _tissue(self, image: Array, stack: SliceStack, corner: Points, edge: float) -> None:
        """Paint everything but the vessels on one thin slice."""
        t, layers = self.scene.tissues, self._layers
        brush = Brush(image, stack, (corner - self._low) / self._step, self._step, edge)
        image.fill(t.air)
        if self.scene.modality == "CTA":
            brush.paint(layers.headrest, t.headrest)
        skin = brush.part(layers.skin)
        if skin is None:
            return
        brush.cover(skin, skin.distance, t.skin)
        brush.cover(skin, skin.distance + np.float32(2.2), t.fat)
        if (muscle := brush.part(layers.muscle)) is not None:
            deep = np.maximum(muscle.distance, brush.same(layers.skin, muscle) + np.float32(4.5))
            brush.cover(muscle, deep, t.muscle)
        if (bone := brush.part(layers.bone)) is not None:
            inner = np.maximum(bone.distance, brush.same(layers.skin, bone) + np.float32(2.0))
            brush.cover(bone, inner, t.bone)
            spongy = t.marrow * (1 + np.float32(0.22) * brush.same(layers.texture, bone))
            brush.cover(bone, inner + np.float32(1.8), spongy)
        brush.paint(layers.orbit, t.orbit)
        if (cranium := brush.part(layers.cranium)) is not None:
            brush.cover(cranium, cranium.distance, t.dura)
            brush.cover(cranium, cranium.distance + np.float32(0.8), t.csf)
            self._parenchyma(brush, t, layers)
        brush.paint(layers.gland, t.gland)
        brush.paint(layers.air, t.air)
        brush.paint(layers.eye, t.eye)

    def _parenchyma(self, brush: Brush, t: Tissues, layers: Layers) -> None:
        part = brush.part(layers.brain)
        if part is None:
            return
        depth = -part.distance
        fold = np.abs(brush.same(layers.fold, part)) * np.float32(1 / layers.fold_slope)
        # The sulci end some way below the skull, not below whatever cistern is next.
        fold += np.maximum(-np.float32(20) - brush.same(layers.cranium, part), 0)
        fold += np.maximum(-brush.same(layers.deep, part), 0)
        inward = np.minimum(depth, fold - np.float32(0.55))
        amount = t.texture if self.scene.modality == "CTA" else t.texture * t.grey
        texture = brush.same(layers.texture, part) * np.float32(amount)
        brush.cover(part, -inward, texture + np.float32(t.grey))
        brush.cover(part, np.float32(2.9) - inward, texture + np.float32(t.white))
        brush.paint(layers.grey_nuclei, (t.grey * 0.8 + t.white * 0.2))
        brush.paint(layers.ventricle, t.csf)
        if (falx := brush.part(layers.falx)) is not None:
            sheet = np.abs(brush.midline(self._grid, falx)) - np.float32(0.55)
            brush.cover(falx, np.maximum(sheet, falx.distance), t.dura)


def _blend(images: Array, canvas: Canvas, value: npt.NDArray[Any], radius: npt.NDArray[Any], edge: float) -> None:
    """Put vessels (n,) of a value and a radius in mm into the images, each with a soft edge of that width."""
    near = canvas.distance < np.float32(edge / 2)
    owner = canvas.owner[near]
    cover = np.minimum(np.float32(0.5) - canvas.distance[near] * np.float32(1 / edge), 1)
    # A voxel on the axis of a tube thinner than itself is only partly blood.
    fill = (1 - np.exp(-1.2 * (2 * radius / edge) ** 2)) / np.minimum(1, 0.5 + radius / edge)
    cover *= fill.astype(np.float32)[owner]
    images[near] += cover * (value.astype(np.float32)[owner] - images[near])


def _lowest_mm(stack: SliceStack) -> float:
    """LPS z of the lowest corner of a stack."""
    rows, columns = stack.shape
    right = stack.row * ((columns - 1) * stack.spacing_mm[1])
    down = stack.column * ((rows - 1) * stack.spacing_mm[0])
    return float(min((stack.positions_lps + s)[:, 2].min() for s in (0 * right, right, down, right + down)))
