"""Draws in which nothing happens but what a test says."""

from __future__ import annotations

from typing import Any

from aneurysm.patches.augment_draws import AugmentDraw


def still(**changes: Any) -> AugmentDraw:
    nothing = {
        "flips": (False, False, False),
        "affine_mm": None,
        "controls_mm": None,
        "window_shift": 0.0,
        "window_width": 1.0,
        "gamma": 1.0,
        "noise_sigma": 0.0,
        "noise_seed": 0,
        "blur_sigma_mm": 0.0,
        "slice_mm": 0.0,
        "slice_axis": 0,
        "slice_phase": 0.0,
        "inverted": False,
    }
    return AugmentDraw(**(nothing | changes))
