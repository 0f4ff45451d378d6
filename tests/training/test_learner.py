"""The learning rate over a run, and what decays."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from aneurysm.training.config_file import load_config
from aneurysm.training.learner import make_optimizer, rate_factor


def test_it_rises_in_a_line_then_falls_as_a_cosine():
    rates = [rate_factor(step, 101, 0.1, 0.01) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.505, abs=1e-3)  # half way down
    assert rates[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_short_runs_have_a_rate_too(steps, warmup):
    assert all(0 < rate_factor(step, steps, warmup, 0.0) <= 1 for step in range(max(1, steps - 1)))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_biases_and_normalisation_do_not_decay(name):
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Linear(2, 3))
    config = load_config(None, {"optimizer.name": name, "optimizer.weight_decay": 0.5}).resolved().optimizer
    optimizer = make_optimizer(model, config)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {n: decays[id(p)] for n, p in model.named_parameters()} == {
        "0.weight": 0.5, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.5, "2.bias": 0.0,
    }  # fmt: skip
    assert isinstance(optimizer, torch.optim.AdamW if name == "adamw" else torch.optim.SGD)
