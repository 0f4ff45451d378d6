"""Draws keep to the configuration, and a configuration to its limits."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from aneurysm.patches.augment_config import Affine, AugmentConfig, Elastic, Flip
from aneurysm.patches.augment_draws import draw_augmentation

OFF = AugmentConfig.off()
CONTROLS = (4, 4, 4)


def test_draws_of_one_kind_do_not_depend_on_the_chance_of_another():
    often_config = AugmentConfig.model_validate({"affine": {"p": 1}, "elastic": {"p": 1}, "noise": {"p": 1}})
    for seed in range(20):
        rare, often = (
            draw_augmentation(seed, AugmentConfig(), CONTROLS),
            draw_augmentation(seed, often_config, CONTROLS),
        )
        assert rare.flips == often.flips
        assert rare.noise_seed == often.noise_seed
        assert (rare.gamma, rare.inverted, rare.slice_mm) == (often.gamma, often.inverted, often.slice_mm)


def test_flips_happen_as_often_as_asked():
    config = AugmentConfig(flip=Flip(left_right=0.5, front_back=0.1))
    flips = torch.tensor([draw_augmentation(seed, config, CONTROLS).flips for seed in range(2000)]).float().mean(dim=0)
    assert flips.tolist() == pytest.approx([0, 0.1, 0.5], abs=0.03)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"flips": {}}, "flips"),
        ({"affine": {"rotate": 3}}, "rotate"),
        ({"noise": {"p": 1.5}}, "less than or equal to 1"),
        ({"gamma": {"power": [2, 1]}}, "lower bound 2 is above the upper bound 1"),
        ({"elastic": {"spacing_mm": 16, "max_mm": 3}}, "more than an eighth"),
        ({"low_resolution": {"axis_odds": [0, 0, 0]}}, "axis_odds"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong, says):
    with pytest.raises(ValidationError, match=says):
        AugmentConfig.model_validate(wrong)


def test_off_draws_nothing_whatever_the_seed():
    for seed in range(50):
        drawn = draw_augmentation(seed, OFF, CONTROLS)
        assert drawn.flips == (False, False, False)
        assert not drawn.resamples
        assert (drawn.window_shift, drawn.window_width, drawn.gamma) == (0, 1, 1)
        assert (drawn.noise_sigma, drawn.blur_sigma_mm, drawn.slice_mm, drawn.inverted) == (0, 0, 0, False)


def test_draws_keep_within_their_limits():
    config = AugmentConfig(affine=Affine(p=1, rotation_deg=(10, 0, 0), scale=(0.8, 1.25), anisotropy=0, shear=0))
    config = config.model_copy(update={"elastic": Elastic(p=1, max_mm=4)})
    for seed in range(100):
        drawn = draw_augmentation(seed, config, (4, 5, 6))
        scale = drawn.affine_mm[0, 0]
        assert 0.8 <= scale <= 1.25
        assert abs(drawn.affine_mm[1, 2]) <= scale * torch.sin(torch.deg2rad(torch.tensor(10.0))) + 1e-6
        assert drawn.affine_mm[0, 1:].tolist() == [0, 0]
        assert drawn.controls_mm.shape == (3, 4, 5, 6)
        assert abs(drawn.controls_mm).max() <= 4
