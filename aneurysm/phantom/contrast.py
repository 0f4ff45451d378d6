"""How bright each tissue is in each modality, and the noise, shading and scale that the scanner adds."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.shapes import Array


@dataclass(frozen=True)
class Tissues:
    """Values of the tissues: HU for CT; for MR parts of the brightest tissue."""

    air: float
    skin: float
    fat: float
    muscle: float
    bone: float
    marrow: float
    csf: float
    grey: float
    white: float
    dura: float
    gland: float
    eye: float
    orbit: float
    headrest: float
    artery: float
    vein: float
    calcium: float
    texture: float
    """Amplitude of the tissue texture: HU, or a part of the signal."""


_TABLE: dict[str, Tissues] = {
    "CTA": Tissues(
        air=-1000, skin=30, fat=-95, muscle=60, bone=1350, marrow=520, csf=8, grey=44, white=31, dura=75, gland=80,
        eye=12, orbit=-85, headrest=-350, artery=380, vein=210, calcium=1000, texture=3,
    ),
    "MRA": Tissues(
        air=0.0, skin=0.25, fat=0.22, muscle=0.24, bone=0.04, marrow=0.12, csf=0.09, grey=0.33, white=0.37, dura=0.2,
        gland=0.4, eye=0.08, orbit=0.2, headrest=0.0, artery=1.0, vein=0.26, calcium=0.05, texture=0.03,
    ),
    "MRI T2": Tissues(
        air=0.0, skin=0.4, fat=0.7, muscle=0.2, bone=0.04, marrow=0.38, csf=1.0, grey=0.54, white=0.4, dura=0.18,
        gland=0.5, eye=1.0, orbit=0.65, headrest=0.0, artery=0.05, vein=0.12, calcium=0.02, texture=0.03,
    ),
    "MRI T1post": Tissues(
        air=0.0, skin=0.55, fat=0.95, muscle=0.38, bone=0.04, marrow=0.6, csf=0.16, grey=0.4, white=0.5, dura=0.8,
        gland=0.95, eye=0.17, orbit=0.85, headrest=0.0, artery=0.88, vein=1.0, calcium=0.05, texture=0.03,
    ),
}  # fmt: skip


def draw_tissues(modality: str, rng: np.random.Generator) -> Tissues:
    """Draw the tissues of one examination: bolus timing, flip angle and the like move them a little."""
    base = _TABLE[modality]
    values = {f.name: float(getattr(base, f.name)) for f in fields(base)}
    if modality == "CTA":
        values["artery"] = float(np.clip(rng.normal(380, 70), 240, 560))
        # Late scans have bright veins; early ones dark.
        values["vein"] = values["artery"] * float(rng.uniform(0.25, 0.85))
        values["bone"] *= float(rng.uniform(0.88, 1.12))
        values["grey"] += float(rng.normal(0, 2))
    else:
        for name in ("skin", "fat", "muscle", "marrow", "grey", "white", "csf", "dura", "orbit"):
            values[name] *= float(np.clip(rng.normal(1, 0.06), 0.8, 1.2))
        if modality == "MRA":
            values["artery"] *= float(rng.uniform(0.85, 1.05))
            values["vein"] *= float(rng.uniform(0.6, 1.7))
            values["fat"] *= float(rng.choice([0.6, 1.0, 2.0]))
        if modality == "MRI T2":
            values["artery"] *= float(rng.uniform(0.5, 3.0))
    return Tissues(**values)


def noise_level(modality: str, size: str, rng: np.random.Generator, difficulty: float) -> float:
    """Return standard deviation of the noise at the pixel, in the units of the modality."""
    level = float(rng.uniform(9, 20) if modality == "CTA" else rng.uniform(0.018, 0.04))
    # Larger pixels collect more photons, or more spins.
    return level * {"tiny": 0.5, "small": 0.75, "full": 1.0}[size] * float(np.sqrt(difficulty))


def ct_noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> Array:
    """Gaussian noise with the short correlation that a reconstruction kernel leaves, (rows, columns), HU."""
    wide = rng.standard_normal((shape[0] + 2, shape[1] + 2), dtype=np.float32)
    down = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    both = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    both *= np.float32(sigma / 6.0)  # Each pass of (1, 2, 1) multiplies the deviation by the root of 6.
    return np.asarray(both, dtype=np.float32)


def rician(image: Array, sigma: float, rng: np.random.Generator) -> Array:
    """Return the magnitude of the signal plus complex Gaussian noise: a floor in air, no negative values."""
    real = rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = rng.standard_normal(image.shape, dtype=np.float32)
    real *= np.float32(sigma)
    imaginary *= np.float32(sigma)
    real += image
    real *= real
    imaginary *= imaginary
    real += imaginary
    return np.asarray(np.sqrt(real, out=real), dtype=np.float32)


@dataclass(frozen=True)
class Shading:
    """The coil's smooth sensitivity: a product of cosines along the scanner's axes, 1 in the middle."""

    amplitudes: npt.NDArray[np.float64]  # (3,)
    periods_mm: npt.NDArray[np.float64]  # (3,)
    phases: npt.NDArray[np.float64]  # (3,)

    def along(self, axis: int, millimetres: npt.NDArray[np.float64]) -> Array:
        """Return the factor along u (0), v (1) or w (2)."""
        angle = 2 * np.pi * millimetres / self.periods_mm[axis] + self.phases[axis]
        return np.asarray(1 + self.amplitudes[axis] * np.cos(angle), dtype=np.float32)


def draw_shading(rng: np.random.Generator) -> Shading:
    """Draw a field that varies by some 10 to 30 % over the head."""
    return Shading(rng.uniform(0.03, 0.14, 3), rng.uniform(220, 420, 3), rng.uniform(0, 2 * np.pi, 3))


@dataclass(frozen=True)
class Flow:
    """
    What moving blood does to the signal of arteries.

    Time of flight: blood that has been in the slab for long is saturated, so the signal falls with the height above the
    slab's lower end, faster in thin branches, and the seams of overlapping slabs show as bands.
    """

    time_of_flight: bool
    decay_mm: float = 160.0
    slab_mm: float = 38.0
    seam: float = 0.12

    def factor(self, height_mm: npt.NDArray[np.float64], radius_mm: npt.NDArray[np.float64]) -> Array:
        """Factor on the arterial signal; ``height_mm`` above the lowest slice."""
        if not self.time_of_flight:
            return np.ones(len(height_mm), dtype=np.float32)
        rise = np.maximum(height_mm, 0)
        slow = np.clip(radius_mm / 1.2, 0.45, 1.0)
        band = 1 - self.seam * (0.5 - 0.5 * np.cos(2 * np.pi * rise / self.slab_mm)) ** 4
        return np.asarray(np.exp(-rise / self.decay_mm / slow) * (0.55 + 0.45 * slow) * band, dtype=np.float32)
