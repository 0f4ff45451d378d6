"""Draws -> Geometry: voxels, masks and coordinates of a batch flipped, turned, scaled, sheared, bent and cropped.

Also what else a left-right flip changes: labels and values of the vessel masks trade sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from aneurysm.labels import LABELS, LEFT_RIGHT_PAIRS, VESSEL_VALUES
from aneurysm.patches.augment_draws import AugmentDraw


class Geometry:
    """
    What happens to the B patches of a batch. All of it is one interpolation, or none: a mere flip moves whole voxels.

    With p and q in mm from the centre, input p and output q are bound by ``p = M (q + d(q))``: M is the inverse of
    the affine map and the flips, d the elastic displacement. That is what the sampling grid needs. Coordinates go the
    other way, ``q = inverse(M) p - d(q)``, solved by iteration.

    Parameters
    ----------
    draws
        B of them.
    shape_zyx
        Of the patches that come in.
    out_shape_zyx
        Of those that go out: the middle of them, nowhere larger. If the two differ by an odd number of voxels, the
        extra one is cut off at the far end.
    spacing_mm
        (z, y, x) of a voxel, before and after.
    controls_mm
        Distance of the elastic control points.
    device
        Of the batch.
    """

    def __init__(
        self,
        draws: Sequence[AugmentDraw],
        shape_zyx: tuple[int, int, int],
        out_shape_zyx: tuple[int, int, int],
        spacing_mm: tuple[float, float, float],
        controls_mm: float,
        device: torch.device,
    ) -> None:
        self._shape, self._out_shape = np.array(shape_zyx), out_shape_zyx
        self._spacing_mm, self._controls_mm, self._device = spacing_mm, controls_mm, device
        self._draws = draws
        self._start = (self._shape - out_shape_zyx) // 2
        self._flips = np.array([draw.flips for draw in draws])
        self._resampled = np.array([draw.resamples for draw in draws])
        spacing = np.array(spacing_mm)
        maps_mm = np.stack([np.eye(3) if draw.affine_mm is None else draw.affine_mm for draw in draws])
        maps_mm = np.where(self._flips, -1.0, 1.0)[:, :, None] * maps_mm
        self._forward = maps_mm * spacing / spacing[:, None]  # of voxels
        self._controls = self._all_controls()

    def image(self, stored: Tensor, fill: Tensor) -> Tensor:
        """Return (B, 1, Z, Y, X) float32 of stored integers; ``fill`` (B,) is what lies outside."""
        out = self._whole_voxels(stored).float()
        if self._grid is not None:
            rows, air = self._rows, fill[self._rows, None, None, None, None]
            # grid_sample pads with 0, so air has to be 0 meanwhile.
            out[rows] = self._sampled(stored[rows] - air, "bilinear") + air
        return out

    def mask(self, mask: Tensor) -> Tensor:
        """Return a (B, 1, Z, Y, X) uint8 mask, moved by the nearest voxel; outside is 0."""
        out = self._whole_voxels(mask)
        if self._grid is not None:
            out[self._rows] = self._sampled(mask[self._rows].float(), "nearest").to(mask.dtype)
        return out

    def points(self, sample: Tensor, zyx: Tensor) -> Tensor:
        """Return where (L, 3) voxel coordinates of the patches ``sample`` (L,) go."""
        middle = (np.array(self._out_shape) - 1) / 2
        shift = middle - self._forward @ (self._start + middle)
        forward, shift = self._tensor(self._forward)[sample], self._tensor(shift)[sample]
        # No matrix product: on a GPU it may be set to round coordinates to 10 bits.
        straight = (forward * zyx[:, None, :]).sum(dim=2) + shift
        if self._controls is None:
            return straight
        controls, spacing = self._controls[sample], self._tensor(np.array(self._spacing_mm))
        moved = straight
        # Each step leaves at most 3/4 of the error (see `augment_config.Elastic`), and commonly a tenth.
        for _ in range(15):
            moved = straight - displacement_at(controls, moved, self._spacing_mm, self._controls_mm) / spacing
        return moved

    def _whole_voxels(self, voxels: Tensor) -> Tensor:
        """Return a copy of the patches' middle, flipped where that is all."""
        z, y, x = (slice(at, at + n) for at, n in zip(self._start.tolist(), self._out_shape, strict=True))
        out = voxels[:, :, z, y, x].clone()
        for axis in range(3):
            flipped = self._flips[:, axis] & ~self._resampled
            if flipped.any():
                rows = self._index(flipped)
                out[rows] = out[rows].flip(axis + 2)
        return out

    def _sampled(self, voxels: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
        assert self._grid is not None
        return grid_sample(voxels, self._grid, mode=mode, padding_mode="zeros", align_corners=False)

    @cached_property
    def _rows(self) -> Tensor:
        return self._index(self._resampled)

    @cached_property
    def _grid(self) -> Tensor | None:
        """Return (R, Z, Y, X, 3), where the voxels of the R resampled patches come from, or None if there are none."""
        if not self._resampled.any():
            return None
        # In grid_sample's units: from -1 to 1 between outer faces (not voxel centres: that is align_corners=True).
        shape, out_shape = self._shape, np.array(self._out_shape)
        back = np.linalg.inv(self._forward[self._resampled]) * out_shape / shape[:, None]
        centre = ((2 * self._start + out_shape - shape) / shape).tolist()
        z, y, x = (_between_faces(n, self._device) for n in self._out_shape)
        back_to = self._tensor(back)[..., None, None, None]
        grid = torch.empty(len(back), *self._out_shape, 3, dtype=torch.float32, device=self._device)
        for axis in range(3):
            from_z, from_y, from_x = back_to[:, axis].unbind(1)
            plane = centre[axis] + from_z * z[:, None, None] + from_y * y[:, None]
            # grid_sample wants (x, y, z).
            torch.add(plane, from_x * x, out=grid[..., 2 - axis])
        if self._controls is not None:
            bent = np.array([draw.controls_mm is not None for draw in self._draws])
            among_resampled = self._index(bent[self._resampled])
            # The map is linear, so it can be applied to the few control points instead of to each voxel's displacement.
            units = self._tensor(back * (2 / (np.array(self._spacing_mm) * out_shape)))[among_resampled].flip(1)
            controls = torch.einsum("bij,bjzyx->bizyx", units, self._controls[self._index(bent)])
            moved = displacement_on_grid(controls, self._out_shape, self._spacing_mm, self._controls_mm)
            grid[among_resampled] += moved.movedim(1, -1)
        return grid

    def _all_controls(self) -> Tensor | None:
        """Return (B, 3, z, y, x), zeros for the patches that are not bent, or None if none are."""
        drawn = [draw.controls_mm for draw in self._draws]
        flat = next((np.zeros_like(controls) for controls in drawn if controls is not None), None)
        if flat is None:
            return None
        return self._tensor(np.stack([flat if controls is None else controls for controls in drawn]))

    def _index(self, which: NDArray[np.bool_]) -> Tensor:
        # Indexing with numbers, unlike with booleans, waits for nothing on a GPU.
        return torch.from_numpy(np.flatnonzero(which)).to(self._device, non_blocking=True)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).float().to(self._device, non_blocking=True)


def _between_faces(n: int, device: torch.device) -> Tensor:
    """Return (n,) float32: where the centres of n voxels lie, their outer faces being at -1 and 1."""
    # Of whole numbers, a quotient would have torch's default dtype.
    return (2 * torch.arange(n, dtype=torch.float32, device=device) + 1) / n - 1


# Elastic bending: coarse control points -> a smooth displacement, by cubic B-splines.


def controls_shape(
    shape_zyx: tuple[int, int, int], spacing_mm: tuple[float, float, float], distance_mm: float
) -> tuple[int, int, int]:
    """Return how many control points ``distance_mm`` apart a patch needs: one before it and two behind included."""
    z, y, x = (int((n - 1) * mm / distance_mm) + 4 for n, mm in zip(shape_zyx, spacing_mm, strict=True))
    return z, y, x


def displacement_on_grid(
    controls: Tensor, shape_zyx: tuple[int, int, int], spacing_mm: tuple[float, float, float], distance_mm: float
) -> Tensor:
    """
    Return (B, 3, Z, Y, X): the displacement of each voxel, in the units of ``controls``.

    Parameters
    ----------
    controls
        (B, 3, z, y, x): displacement of the control points along (z, y, x).
    shape_zyx, spacing_mm
        Of the patch.
    distance_mm
        From one control point to the next.
    """
    z, y, x = (
        _spline_weights(torch.arange(n, dtype=torch.float32, device=controls.device) * (mm / distance_mm), size)
        for n, mm, size in zip(shape_zyx, spacing_mm, controls.shape[2:], strict=True)
    )
    # From the coarsest to the finest: the full size is reached only in the last step.
    bent = torch.einsum("bczyx,kz->bckyx", controls, z)
    bent = torch.einsum("bczyx,ky->bczkx", bent, y)
    return torch.einsum("bczyx,kx->bczyk", bent, x)


def displacement_at(
    controls: Tensor, zyx: Tensor, spacing_mm: tuple[float, float, float], distance_mm: float
) -> Tensor:
    """
    Return (L, 3): the displacement at L points, the same that `displacement_on_grid` gives the voxels.

    Parameters
    ----------
    controls
        (L, 3, z, y, x): the control points of each point's patch.
    zyx
        (L, 3) voxel coordinates. Outside the patch the displacement is that of the nearest point on its faces.
    spacing_mm, distance_mm
        As in `displacement_on_grid`.
    """
    z, y, x = (
        _spline_weights(at * (mm / distance_mm), size)
        for at, mm, size in zip(zyx.unbind(1), spacing_mm, controls.shape[2:], strict=True)
    )
    return torch.einsum("lczyx,lz,ly,lx->lc", controls, z, y, x)


def _spline_weights(at: Tensor, size: int) -> Tensor:
    """Return (N, size): the weight of each control point at N places, in distances from the second control point."""
    away = (at.clamp(0, size - 3)[:, None] - torch.arange(-1, size - 1, device=at.device)).abs()
    near = 2 / 3 - away**2 + away**3 / 2
    return torch.where(away < 1, near, (2 - away).clamp(min=0) ** 3 / 6)


def mirrored_labels(device: torch.device) -> Tensor:
    """
    Return (14,) int64: for each label the one on the other side; those in the middle stand for themselves.

    ``x[:, mirrored_labels(x.device)]`` swaps the columns of (B, 14) targets or logits, and
    ``mirrored_labels(site.device)[site]`` the sites of lesions.
    """
    return _tables(device)[0]


def mirrored_vessels(vessels: Tensor) -> Tensor:
    """Return a vessel mask (uint8, any shape) whose left and right values have changed places; no voxel moves."""
    return _tables(vessels.device)[1][vessels.long()]


@cache
@torch.inference_mode(mode=False)  # it is kept, and one made in inference mode could not serve a backward pass
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    labels, values = torch.arange(len(LABELS)), torch.arange(256, dtype=torch.uint8)
    for left, right in LEFT_RIGHT_PAIRS:
        labels[left], labels[right] = right, left
        values[VESSEL_VALUES[left]], values[VESSEL_VALUES[right]] = VESSEL_VALUES[right], VESSEL_VALUES[left]
    return labels.to(device), values.to(device)
