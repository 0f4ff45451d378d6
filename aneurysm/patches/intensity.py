"""Physical values -> model units, and what scanners and readers do to them on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aneurysm.errors import UsageError
from aneurysm.patches.augment_draws import AugmentDraw

WindowsHU = Sequence[tuple[float, float]]
"""(low, high) in HU of each channel of CT; none: one channel, in the cache's own window."""

_AIR = 0.05


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
        (B, 1, Z, Y, X) float32 in HU, or the MR scanner's units.
    window
        (B, 2) float32, as in `aneurysm.patches.batch.Batch`.
    is_ct
        (B,) bool.
    ct_windows_hu
        A channel for each. Of CT it shows that window; of MR every channel shows the same, ``window``.
    draws
        B, to move and stretch the windows by; none: they stay.

    Returns
    -------
    Tensor
        (B, C, Z, Y, X) float32 in [0, 1].

    Raises
    ------
    UsageError
        A window of CT is empty, or upside down.
    """
    for low_hu, high_hu in ct_windows_hu:
        if not low_hu < high_hu:
            raise UsageError(f"a CT window from {low_hu:g} to {high_hu:g} HU: give (low, high), the lower value first")
    windows = window[:, None]
    if ct_windows_hu:
        ct = torch.tensor(ct_windows_hu, dtype=torch.float32).to(window.device, non_blocking=True)
        windows = torch.where(is_ct[:, None, None], ct, windows)
    low, width = windows[..., 0], windows[..., 1] - windows[..., 0]
    if draws:
        shift, stretch = _column(window, [(draw.window_shift, draw.window_width) for draw in draws]).unbind(1)
        low = low + width * (shift + (1 - stretch) / 2)[:, None]
        width = width * stretch[:, None]
    return (physical - low[..., None, None, None]).div_(width[..., None, None, None]).clamp_(0, 1)


def add_noise(physical: Tensor, window: Tensor, is_ct: Tensor, draws: Sequence[AugmentDraw]) -> Tensor:
    """Add noise to (B, 1, Z, Y, X) physical values where it was drawn, in place: Gaussian to CT, Rician to MR."""
    rows = [row for row, draw in enumerate(draws) if draw.noise_sigma]
    for row in rows:
        # A generator for each sample: what its neighbours draw must not matter.
        generator = torch.Generator(physical.device).manual_seed(draws[row].noise_seed)
        shape = (2, *physical.shape[2:])
        sigma = draws[row].noise_sigma * (window[row, 1] - window[row, 0])
        real, imaginary = torch.randn(shape, generator=generator, dtype=torch.float32, device=physical.device) * sigma
        real += physical[row, 0]
        # MR shows the magnitude of a complex signal, so its noise never falls below zero, and lifts the air.
        physical[row, 0] = torch.where(is_ct[row], real, torch.hypot(real, imaginary))
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
