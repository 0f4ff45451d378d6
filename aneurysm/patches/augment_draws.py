"""Seed -> Draw: all that chance decides about one patch, but for the noise of its voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.patches.augment_config import Affine, AugmentConfig

_STREAM: Final = 0xA06
"""Upper half of the generator's key, so that others who draw from the same seed get numbers of their own."""


@dataclass(frozen=True)
class AugmentDraw:
    """
    What is done to one patch. Values of which nothing was drawn change nothing.

    Attributes
    ----------
    flips
        Along (z, y, x).
    affine_mm
        (3, 3) float64: takes (z, y, x) in mm from the centre to where they go, before the flips; or None.
    controls_mm
        (3, z, y, x) float32: displacement of the elastic control points; or None.
    window_shift, window_width
        In widths of the window, and as a factor of its width.
    gamma
        The power.
    noise_sigma
        As a fraction of the window's width.
    noise_seed
        Of the noise of the voxels.
    blur_sigma_mm
        Of the Gaussian.
    slice_mm, slice_axis, slice_phase
        Thickness of simulated slices (0: none), the axis across them, and where along it the first begins, in slices.
    inverted
        Whether intensities are inverted, if it is MR.
    shift_mm
        Along (z, y, x), after the affine map and before the flips; of pictures alone.
    """

    flips: tuple[bool, bool, bool]
    affine_mm: NDArray[np.float64] | None
    controls_mm: NDArray[np.float32] | None
    window_shift: float
    window_width: float
    gamma: float
    noise_sigma: float
    noise_seed: int
    blur_sigma_mm: float
    slice_mm: float
    slice_axis: int
    slice_phase: float
    inverted: bool
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def resamples(self) -> bool:
        """Whether the patch is interpolated; a mere flip is not."""
        return self.affine_mm is not None or self.controls_mm is not None


def draw_augmentation(seed: int, config: AugmentConfig, controls_shape: tuple[int, int, int]) -> AugmentDraw:
    """
    Return what ``seed`` decides. It depends on nothing else: not on the batch, nor on the device.

    As many numbers are drawn for what does not happen as for what does, so that a change of one chance leaves the
    rest of the draws as they were.

    Parameters
    ----------
    seed
        Of the sample, any 64-bit integer.
    config
        Chances and strengths.
    controls_shape
        How many elastic control points there are along (z, y, x).
    """
    dice = _Dice(seed)
    flip = config.flip
    flips = (dice.happens(flip.up_down), dice.happens(flip.front_back), dice.happens(flip.left_right))
    affine = dice.happens(config.affine.p), _affine_mm(dice, config.affine)
    window = dice.happens(config.window.p)
    window_shift, width = dice.between(-config.window.shift, config.window.shift), dice.factor(*config.window.width)
    gamma = dice.happens(config.gamma.p), dice.factor(*config.gamma.power)
    noise = dice.happens(config.noise.p), dice.between(*config.noise.sigma)
    blur = dice.happens(config.blur.p), dice.between(*config.blur.sigma_mm)
    coarse = config.low_resolution
    slices = dice.happens(coarse.p), dice.factor(*coarse.slice_mm)
    odds = np.cumsum(coarse.axis_odds)
    axis = int(np.searchsorted(odds, dice.between(0, odds[-1]), side="right"))
    phase = dice.between(0, 1)
    inverted = dice.happens(config.inversion.p)
    noise_seed = int(dice.rng.integers(2**63))
    controls = None
    if dice.happens(config.elastic.p):
        moved = dice.rng.uniform(-config.elastic.max_mm, config.elastic.max_mm, (3, *controls_shape))
        controls = moved.astype(np.float32)
    most = config.affine.shift_mm
    shifts = dice.between(-most, most), dice.between(-most, most), dice.between(-most, most)
    return AugmentDraw(
        flips=flips,
        affine_mm=affine[1] if affine[0] else None,
        controls_mm=controls,
        window_shift=window_shift if window else 0.0,
        window_width=width if window else 1.0,
        gamma=gamma[1] if gamma[0] else 1.0,
        noise_sigma=noise[1] if noise[0] else 0.0,
        noise_seed=noise_seed,
        blur_sigma_mm=blur[1] if blur[0] else 0.0,
        slice_mm=slices[1] if slices[0] else 0.0,
        slice_axis=axis,
        slice_phase=phase,
        inverted=inverted,
        shift_mm=shifts if affine[0] else (0.0, 0.0, 0.0),
    )


class _Dice:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.Generator(np.random.Philox(key=_STREAM << 64 | seed % 2**64))

    def happens(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def factor(self, low: float, high: float) -> float:
        """Twice as much is as likely as half as much."""
        return float(low * (high / low) ** self.rng.random())


def _affine_mm(dice: _Dice, config: Affine) -> NDArray[np.float64]:
    angles = [math.radians(dice.between(-most, most)) for most in config.rotation_deg]
    scale = dice.factor(*config.scale)
    shape = np.eye(3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        shape[i, j] = dice.between(-config.shear, config.shear)
    for i in range(3):
        shape[i] *= scale * (1 + dice.between(-config.anisotropy, config.anisotropy))
    turned: NDArray[Any] = rotation_zyx(*angles) @ shape
    return turned


def rotation_zyx(about_z: float, about_y: float, about_x: float) -> NDArray[np.float64]:
    """
    Return the (3, 3) matrix that turns (z, y, x) vectors in mm: about x first, then y, then z, in radians.

    Right-handed in LPS: a positive angle about z (Superior) turns x (Left) to y (Posterior).
    """
    turned = np.eye(3)
    # About axis k, vectors turn from axis i to axis j; (x, y, z) in a circle is z -> x -> y of (z, y, x).
    for angle, i, j in ((about_x, 1, 0), (about_y, 0, 2), (about_z, 2, 1)):
        step = np.eye(3)
        step[i, i] = step[j, j] = math.cos(angle)
        step[j, i], step[i, j] = math.sin(angle), -math.sin(angle)
        turned = step @ turned
    return turned
