"""The optimiser and its learning rate over the run."""

from __future__ import annotations

import math

import torch
from torch import nn

from aneurysm.training.config import ResolvedOptimizer


def make_optimizer(model: nn.Module, config: ResolvedOptimizer, *, fused: bool = False) -> torch.optim.Optimizer:
    """Return AdamW or SGD; biases and normalisation don't decay. ``fused``: one kernel for all weights, of AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def rate_factor(step: int, steps: int, warmup: float, final: float) -> float:
    """
    Return the learning rate of a step as a share of its peak.

    Parameters
    ----------
    step
        From 0.
    steps
        Of the whole run.
    warmup
        Share of the steps over which it rises, in a line; the first step has already some of it.
    final
        The share that is left at the end, after a cosine.
    """
    rising = round(steps * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = min(1.0, (step - rising) / max(1, steps - 1 - rising))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
