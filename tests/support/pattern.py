"""An image that is known everywhere: a function of patient space (LPS, mm) with no symmetry to hide a flip behind."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Blob:
    """A Gaussian: its centroid is a marked point that can be found again in any resampled image."""

    centre: tuple[float, float, float]
    height: float
    sigma_mm: float


@dataclass(frozen=True)
class Pattern:
    """``base`` + a ramp + low-frequency waves + blobs, as a function of LPS points in mm.

    The ramp has a different slope along every axis, so that any flip or swap of axes changes values everywhere.
    """

    centre: np.ndarray
    base: float = 300.0
    ramp: tuple[float, float, float] = (3.0, -4.0, 4.5)  # per mm
    waves: tuple[tuple[float, tuple[float, float, float], float], ...] = field(
        # amplitude, wave vector in rad/mm, phase: wavelengths of 48 to 70 mm
        default=(
            (60.0, (0.11, 0.03, -0.02), 0.4),
            (45.0, (-0.02, 0.10, 0.05), 1.9),
            (35.0, (0.04, -0.03, 0.08), 3.3),
        )
    )
    blobs: tuple[Blob, ...] = ()

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values at LPS points of shape (..., 3)."""
        relative = np.asarray(points, dtype=np.float64) - self.centre
        values = self.base + relative @ np.asarray(self.ramp)
        for amplitude, wave_vector, phase in self.waves:
            values = values + amplitude * np.sin(relative @ np.asarray(wave_vector) + phase)
        for blob in self.blobs:
            squared = np.sum((np.asarray(points) - np.asarray(blob.centre)) ** 2, axis=-1)
            values = values + blob.height * np.exp(-squared / (2 * blob.sigma_mm**2))
        return values

    def gradient(self, points: np.ndarray, step_mm: float = 1e-3) -> np.ndarray:
        """Central differences, shape (..., 3), per mm."""
        return np.stack(
            [(self(points + step) - self(points - step)) / (2 * step_mm) for step in np.eye(3) * step_mm],
            axis=-1,
        )

    def second_derivative(self, points: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Along the unit vector ``direction``, per mm^2."""
        direction = np.asarray(direction, dtype=np.float64)
        relative = np.asarray(points, dtype=np.float64) - self.centre
        second = np.zeros(relative.shape[:-1])
        for amplitude, wave_vector, phase in self.waves:
            vector = np.asarray(wave_vector)
            second -= amplitude * (vector @ direction) ** 2 * np.sin(relative @ vector + phase)
        for blob in self.blobs:
            away = np.asarray(points) - np.asarray(blob.centre)
            variance = blob.sigma_mm**2
            bell = blob.height * np.exp(-np.sum(away**2, axis=-1) / (2 * variance))
            second += bell * ((away @ direction) ** 2 / variance - 1) / variance
        return second

    def curvature(self, points: np.ndarray, direction: np.ndarray, reach_mm: float) -> np.ndarray:
        """The largest |second derivative| along ``direction`` within about ``reach_mm`` of each point, per mm^2."""
        largest = np.abs(self.second_derivative(points, direction))
        for corner in np.array(np.meshgrid(*[(-0.8, 0.8)] * 3)).reshape(3, -1).T * reach_mm:
            np.maximum(largest, np.abs(self.second_derivative(points + corner, direction)), out=largest)
        return largest


def anatomy(centre: np.ndarray, extent_mm: float = 30.0, base: float = 300.0) -> Pattern:
    """A smooth pattern within some 450 of ``base`` around ``centre``, whatever the extent of the acquisition.

    Two blobs stand off-centre: one bright (say, an aneurysm), one dark.
    """
    centre = np.asarray(centre, dtype=np.float64)
    slower = max(1.0, extent_mm / 30.0)
    plain = Pattern(centre)
    return Pattern(
        centre,
        base,
        ramp=tuple(slope / slower for slope in plain.ramp),
        waves=tuple((a, tuple(k / slower for k in vector), phase) for a, vector, phase in plain.waves),
        blobs=(
            Blob(tuple(centre + np.array([4.0, -3.0, 2.5]) * slower), 220.0, 5.0 * slower),
            Blob(tuple(centre + np.array([-5.0, 4.0, -3.0]) * slower), -160.0, 6.0 * slower),
        ),
    )


def lone_blob(point: np.ndarray, *, height: float = 1000.0, sigma_mm: float = 3.0, base: float = 100.0) -> Pattern:
    """Nothing but one marked point."""
    point = np.asarray(point, dtype=np.float64)
    return Pattern(point, base, (0.0, 0.0, 0.0), (), (Blob(tuple(point), height, sigma_mm),))


def level_but_one(shape: tuple[int, int, int], value: float) -> np.ndarray:
    """``value`` throughout, but for the voxel in the middle: CT that is one value everywhere has no signal."""
    values = np.full(shape, value)
    values[tuple(n // 2 for n in shape)] += 2000
    return values
