"""Physical values <-> stored integers: HU for CT; robust percentiles of the head for MR, which has no unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from aneurysm.errors import Reason, SeriesRejectedError
from aneurysm.spec import ArrayIntensity, CTIntensity, MRIntensity, StorageSpec

CT_SLICE_HU: Final = (-100.0, 600.0)
"""Window in which slices of CT are drawn: brain, bright vessels and bone apart."""
_STATISTICS_VOXELS: Final = 2_000_000
_Array = TypeVar("_Array")


def to_physical(values: _Array, scale: Any, offset: Any) -> _Array:
    """
    Return ``values * scale + offset``: stored integers as HU, or the MR scanner's units.

    Parameters
    ----------
    values
        Stored integers that were made float32, of numpy or of torch, which are changed in place; or a Python float.
    scale, offset
        Of the volume's `Intensity`: numbers, or what can be broadcast against ``values``.
    """
    result: Any = values
    result *= scale
    result += offset
    return cast("_Array", result)


def to_model_units(physical: _Array, low: Any, width: Any) -> _Array:
    """
    Return ``(physical - low) / width``, clipped to [0, 1]: what a model sees.

    Parameters
    ----------
    physical
        float32, of numpy or of torch. It stays as it is.
    low, width
        Of the window, in the units of ``physical``: numbers, or what can be broadcast against it.
    """
    result = cast("Any", physical) - low
    result /= width
    return cast("_Array", result.clip(0, 1))


@dataclass(frozen=True)
class Intensity:
    """
    How stored integers map to physical values, and those to a model's [0, 1].

    ``physical = stored * scale + offset``; ``clip`` is the range that is stored and ``window`` the range that maps
    to [0, 1], both in physical units. ``statistics`` are those of an MR volume that set its scale.
    """

    unit: Literal["HU", "arbitrary"]
    scale: float
    offset: float
    clip: tuple[float, float]
    window: tuple[float, float]
    statistics: dict[str, float]


@dataclass(frozen=True)
class StoredIntensity(Intensity):
    """An `Intensity` with how it is stored: the integers' ``dtype``, and ``fill``, the stored value of air."""

    fill: int
    dtype: str

    def store(self, physical: NDArray[np.float32]) -> NDArray[Any]:
        """Return the stored integers of ``physical``, clipped and rounded to the nearest step."""
        steps = np.clip(physical, *self.clip)
        steps -= self.offset
        steps *= 1 / self.scale
        return np.rint(steps, out=steps).astype(self.dtype)


def _integers(low: float, high: float, levels: int, storage: StorageSpec) -> tuple[float, float]:
    """Return scale and offset. Signed storage counts from physical zero where it can, so that CT's integers are HU."""
    scale = (high - low) / (levels - 1)
    first = 0
    if storage.dtype == "int16":
        first = round(low / scale)
        if not (first >= -32768 and first + levels - 1 <= 32767):
            first = -32768 if levels > 32768 else 0
    offset = low - first * scale
    return scale, offset if abs(offset) > 1e-6 * scale else 0.0


def ct_intensity(entry: CTIntensity, storage: StorageSpec) -> StoredIntensity:
    """Return the mapping of CT: fixed, since HU are physical."""
    low, high = entry.clip_hu
    scale, offset = _integers(low, high, entry.levels, storage)
    # Air is -1000 HU, or the lowest value that is kept.
    fill = round((max(low, -1000.0) - offset) / scale)
    return StoredIntensity("HU", scale, offset, entry.clip_hu, entry.window_hu, {}, fill, storage.dtype)


def array_intensity(entry: ArrayIntensity, storage: StorageSpec) -> StoredIntensity:
    """Return the mapping of arrays without a modality: fixed; the window's lower end stands for air."""
    scale, offset = _integers(*entry.window, entry.levels, storage)
    fill = round((entry.window[0] - offset) / scale)
    return StoredIntensity("arbitrary", scale, offset, entry.window, entry.window, {}, fill, storage.dtype)


def mr_intensity(entry: MRIntensity, storage: StorageSpec, volume: NDArray[np.float32]) -> StoredIntensity:
    """
    Return the mapping of one MR ``volume`` (physical values).

    The statistics scale with the volume, so a scanner's arbitrary gain drops out of the model's units.

    Raises
    ------
    SeriesRejectedError
        The volume is empty: no voxel stands out of the background.
    """
    stride = max(1, int(np.ceil((volume.size / _STATISTICS_VOXELS) ** (1 / 3))))
    sample = volume[::stride, ::stride, ::stride].ravel()
    darkest, bright = (float(v) for v in np.percentile(sample, [0.1, 99.5]))
    bottom = min(0.0, darkest)
    head = sample[sample > bottom + entry.foreground * (bright - bottom)]
    if bright <= bottom or len(head) == 0:
        raise SeriesRejectedError(
            Reason.NO_SIGNAL, f"99.5 % of the voxels lie at or below {bright:g}: there is no image"
        )
    low, high = (float(v) for v in np.percentile(head, entry.percentiles))
    if not high > low:
        raise SeriesRejectedError(Reason.NO_SIGNAL, f"all of the head has one value, {low:g}")
    top = low + (high - low) * (1 + entry.headroom)
    scale, offset = _integers(bottom, top, entry.levels, storage)
    statistics = {
        "background": bottom,
        f"head_p{entry.percentiles[0]:g}": low,
        f"head_p{entry.percentiles[1]:g}": high,
        "head_fraction": round(len(head) / len(sample), 4),
    }
    fill = round((0.0 - offset) / scale)
    return StoredIntensity("arbitrary", scale, offset, (bottom, top), (low, top), statistics, fill, storage.dtype)
