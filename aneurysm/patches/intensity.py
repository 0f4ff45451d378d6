"""Physical values -> model units, and what scanners and readers do to them on the way.

Blur and thick slices are separable, so each is a small matrix along an axis of the patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aneurysm.errors import UsageError
from aneurysm.patches.augment_draws import AugmentDraw
from aneurysm.volume.intensity import to_model_units

WindowsHU = Sequence[tuple[float, float]]
"""(low, high) in HU of each channel of CT; none: one channel, in the cache's own window."""

CT_WINDOWS_HU: Final[dict[str, tuple[float, float]]] = {
    "brain": (0.0, 80.0),
    "soft-tissue": (-100.0, 300.0),
    "vessel": (0.0, 600.0),
    "bone": (-200.0, 1300.0),
}
"""Windows by name. That of vessels is wider than a reader's: contrast of 500 HU is to stay below white."""
MrRange = Literal["series", "picture"]
"""Whose percentiles MR's model units are of."""

_AIR = 0.05


def named_windows(windows: Any) -> Any:
    """Return (low, high) in HU for each window that is given by its name; raise `ValueError` if there is no such."""
    if not isinstance(windows, list | tuple):
        return windows
    for name in windows:
        if isinstance(name, str) and name not in CT_WINDOWS_HU:
            raise ValueError(f"there is no window of CT {name!r}. There are {', '.join(CT_WINDOWS_HU)}")
    return tuple(CT_WINDOWS_HU[w] if isinstance(w, str) else w for w in windows)


def model_units(
    physical: Tensor,
    window: Tensor,
    is_ct: Tensor,
    ct_windows_hu: WindowsHU = (),
    draws: Sequence[AugmentDraw] | None = None,
) -> Tensor:
    """
    Map a window's low and high values to 0 and 1, and clip.

    Parameters
    ----------
    physical
        (B, C, Z, Y, X) float32 in HU, or the MR scanner's units.
    window
        (B, 2) float32, as in `aneurysm.patches.batch.Batch`; or (B, C, Z, 2), one for each picture.
    is_ct
        (B,) bool.
    ct_windows_hu
        A channel for each. Of CT it shows that window; of MR every channel shows the same, ``window``.
    draws
        B, to move and stretch the windows by; none: they stay.

    Returns
    -------
    Tensor
        (B, C, Z, Y, X) float32 in [0, 1]; with W windows (B, C W, Z, Y, X), those of a channel together.

    Raises
    ------
    UsageError
        A window of CT is empty, or upside down.
    """
    for low_hu, high_hu in ct_windows_hu:
        if not low_hu < high_hu:
            raise UsageError(f"a CT window from {low_hu:g} to {high_hu:g} HU: give (low, high), the lower value first")
    windows = (window[:, None, None] if window.dim() == 2 else window)[..., None, :]  # (B, C, Z, W, 2)
    if ct_windows_hu:
        ct = torch.tensor(ct_windows_hu, dtype=torch.float32).to(window.device, non_blocking=True)
        windows = torch.where(is_ct[:, None, None, None, None], ct, windows)
    low, width = windows[..., 0], windows[..., 1] - windows[..., 0]
    if draws:
        shift, stretch = _column(window, [(draw.window_shift, draw.window_width) for draw in draws]).unbind(1)
        low = low + width * (shift[:, None, None, None] + (1 - stretch[:, None, None, None]) / 2)
        width = width * stretch[:, None, None, None]
    low, width = (part.transpose(2, 3)[..., None, None] for part in (low, width))  # (B, C, W, Z, 1, 1)
    return to_model_units(physical[:, :, None], low, width).flatten(1, 2)


def picture_windows(physical: Tensor, window: Tensor, is_ct: Tensor) -> Tensor:
    """
    Return (B, C, Z, 2): for MR the 1st and 99.5th percentile of each picture of (B, C, Z, Y, X), for CT its ``window``.

    Pixels without signal, air and what lies outside the volume, don't count.
    """
    flat = physical.flatten(3)
    lowest = flat.amin(-1, keepdim=True)
    seen = torch.where(flat > lowest, flat, torch.nan)
    low, high = torch.nanquantile(seen, torch.tensor([0.01, 0.995], device=flat.device), dim=-1)
    # A picture of one value, as beyond the volume, is black.
    low, high = torch.where(low.isnan(), lowest[..., 0], low), torch.where(high.isnan(), lowest[..., 0] + 1, high)
    own = torch.stack([low, torch.maximum(high, low + 1e-3 * low.abs() + 1e-6)], -1)
    return torch.where(is_ct[:, None, None, None], window[:, None, None], own)


def lower_resolution(image: Tensor, draws: Sequence[AugmentDraw], spacing_mm: tuple[float, float, float]) -> Tensor:
    """
    Return (B, C, Z, Y, X) blurred, and as if scanned in thick slices, where that was drawn; in place.

    Beyond the patch nothing is made up: at its faces weights are spread over the voxels that there are.
    """
    rows = [row for row, draw in enumerate(draws) if draw.blur_sigma_mm or draw.slice_mm]
    if not rows:
        return image
    index = torch.tensor(rows).to(image.device, non_blocking=True)
    z, y, x = (
        torch.from_numpy(np.stack([_along(draws[row], axis, n, spacing_mm[axis]) for row in rows]))
        .float()
        .to(image.device, non_blocking=True)
        for axis, n in enumerate(image.shape[2:])
    )
    chosen = image[index]
    chosen = (z[:, None] @ chosen.flatten(3)).view_as(chosen)
    image[index] = y[:, None, None] @ chosen @ x[:, None, None].mT
    return image


def _along(draw: AugmentDraw, axis: int, n: int, spacing_mm: float) -> NDArray[Any]:
    """Return the (n, n) matrix of all that a draw does along one axis: blur, then slices."""
    matrix = np.eye(n)
    if draw.blur_sigma_mm:
        matrix = gaussian_matrix(n, draw.blur_sigma_mm / spacing_mm)
    if draw.slice_mm and axis == draw.slice_axis:
        matrix = slices_matrix(n, draw.slice_mm / spacing_mm, draw.slice_phase) @ matrix
    return matrix


def gaussian_matrix(n: int, sigma: float) -> NDArray[np.float64]:
    """Return (n, n): each row the weights of a Gaussian of ``sigma`` voxels; they sum to 1."""
    at = np.arange(n)
    # Below a tenth of a voxel the neighbours' weights are 0 anyway, and further below the exponent overflows.
    weights = np.exp(-0.5 * ((at[:, None] - at) / max(sigma, 0.1)) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def slices_matrix(n: int, thickness: float, phase: float) -> NDArray[np.float64]:
    """
    Return (n, n): averages over slices, side by side, and linear interpolation from their centres to the voxels.

    ``thickness`` is in voxels; the first slice begins ``phase`` (0 to 1) slices before the first voxel's face. Slices
    no thicker than a voxel change nothing.
    """
    if thickness <= 1:
        return np.eye(n)
    at = np.arange(n)
    first = -0.5 - phase * thickness
    centres = np.arange(first + thickness / 2, n - 0.5 + thickness / 2, thickness)
    upper = np.minimum(at + 0.5, centres[:, None] + thickness / 2)
    lower = np.maximum(at - 0.5, centres[:, None] - thickness / 2)
    average = (upper - lower).clip(min=0)
    seen = average.sum(axis=1) > 1e-6
    average, centres = average[seen], centres[seen]
    average /= average.sum(axis=1, keepdims=True)
    return np.stack([np.interp(at, centres, column) for column in average.T], axis=1)


def add_noise(physical: Tensor, window: Tensor, is_ct: Tensor, draws: Sequence[AugmentDraw]) -> Tensor:
    """Add noise to (B, C, Z, Y, X) physical values where it was drawn, in place: Gaussian to CT, Rician to MR."""
    rows = [row for row, draw in enumerate(draws) if draw.noise_sigma]
    for row in rows:
        # A generator for each sample: what its neighbours draw must not matter.
        generator = torch.Generator(physical.device).manual_seed(draws[row].noise_seed)
        shape = (2, *physical.shape[1:])
        sigma = draws[row].noise_sigma * (window[row, 1] - window[row, 0])
        real, imaginary = torch.randn(shape, generator=generator, dtype=torch.float32, device=physical.device) * sigma
        real += physical[row]
        # MR shows the magnitude of a complex signal, so its noise never falls below zero, and lifts the air.
        physical[row] = torch.where(is_ct[row], real, torch.hypot(real, imaginary))
    return physical


def change_tones(image: Tensor, is_ct: Tensor, draws: Sequence[AugmentDraw]) -> Tensor:
    """Raise (B, C, Z, Y, X) model units to the power drawn, and invert MR where that was drawn, in place."""
    rows = [row for row, draw in enumerate(draws) if draw.gamma != 1]
    if rows:
        index = torch.tensor(rows).to(image.device, non_blocking=True)
        power = _column(image, [draws[row].gamma for row in rows])
        image[index] = image[index] ** power[:, None, None, None, None]
    rows = [row for row, draw in enumerate(draws) if draw.inverted]
    if rows:
        index = torch.tensor(rows).to(image.device, non_blocking=True)
        chosen = image[index]
        # Not simply 1 - value: air gives no signal in any sequence, and padding would be the brightest thing there is.
        inverted = (1 - chosen) * (chosen / _AIR).clamp(max=1)
        image[index] = torch.where(is_ct[index][:, None, None, None, None], chosen, inverted)
    return image


def _column(like: Tensor, values: Sequence[float] | Sequence[tuple[float, ...]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).to(like.device, non_blocking=True)
