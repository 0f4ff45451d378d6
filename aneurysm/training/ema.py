"""
Ema: the running mean of the weights, which is validated and kept.

torch has `torch.optim.swa_utils.AveragedModel` for it. That looks at a counter on the GPU at every step, which waits
for the GPU, and it begins with a copy of the weights after the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn


class Ema:
    """
    Keeps ``mean = d * mean + (1 - d) * weights`` after every step, ``d`` rising to ``decay``.

    After t steps d is at most (1 + t) / (10 + t): at first the mean follows closely, as the weights are random still.
    Statistics of batch normalisation are averaged alike. With a decay of 0 the mean is the weights.

    Parameters
    ----------
    model
        Whose weights, as they are, the mean begins with.

    Attributes
    ----------
    model
        With the mean of the weights, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Take in the weights of ``model`` after ``steps`` steps."""
        decay = min(self.decay, (1 + steps) / (10 + steps)) if self.decay else 0.0
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        floating = [(mean, now) for mean, now in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floating], [now for _, now in floating], 1 - decay)
        for mean, now in pairs:
            if not mean.is_floating_point():
                mean.copy_(now)

    def broadcast_buffers(self) -> None:
        """Give all ranks the first one's statistics of batch normalisation: each has seen other patches."""
        if torch.distributed.is_initialized():
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Resume from the mean of a checkpoint."""
        self.model.load_state_dict(weights)


def _tensors(model: nn.Module) -> Sequence[Tensor]:
    return [*model.parameters(), *model.buffers()]
