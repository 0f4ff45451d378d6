"""The learning rate over a run, what decays, and steps in fp16."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from aneurysm.patches.loader import PatchLoader
from aneurysm.patches.views.view import Box
from aneurysm.training.config_file import load_config
from aneurysm.training.learner import Learner, make_optimizer, rate_factor
from aneurysm.training.module import PatchModule
from aneurysm.training.ranks import Ranks
from aneurysm.training.timed_loader import MicroBatch
from tests.support.tiny import classifier
from tests.support.train_runs import quick


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


@pytest.fixture
def learner(train_cache) -> Learner:
    """In fp16, which on a CPU is slow, and not offered."""
    torch.manual_seed(0)
    config = quick(train_cache, optimizer__clip_norm=1e-3).model_copy(update={"precision": "fp16"})
    return Learner(PatchModule(classifier(1), config, Box(config.patch)), config, Ranks())


def batch_of(cache) -> MicroBatch:
    (batch,) = PatchLoader(cache, volumes=range(12), patch=(16, 16, 16), batch_size=4, steps=1)
    return MicroBatch((batch,), 0)


def weights_of(learner: Learner) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in learner.module.model.parameters()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's scaler")
def test_fp16_clips_gradients_as_they_are_without_its_scale(learner, train_cache):
    learner.backward(learner.losses(batch_of(train_cache))["loss"])
    norms = []
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: norms.append(
            torch.stack([w.grad.norm() for group in optimizer.param_groups for w in group["params"]]).norm().item()
        )
    )
    before = weights_of(learner)
    learner.update()
    assert norms == pytest.approx([1e-3], rel=1e-2)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights_of(learner), strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's scaler")
def test_a_step_that_overflows_fp16_changes_no_weight_and_halves_the_scale_which_is_saved(learner, train_cache):
    before = weights_of(learner)
    learner.backward(learner.losses(batch_of(train_cache))["loss"] * 1e38)
    learner.update()
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(learner), strict=True))
    content = learner.state_dict() | {"model": learner.ema.model.state_dict()}
    assert (content["global_step"], content["scaler"]["scale"]) == (1, 2.0**15)
    learner.step(batch_of(train_cache))
    assert learner.state_dict()["scaler"]["_growth_tracker"] == 1
    learner.load_state_dict(content)
    assert learner.state_dict()["scaler"] == content["scaler"]
    assert learner.steps == 1
