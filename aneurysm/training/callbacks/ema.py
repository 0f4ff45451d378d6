"""
Ema: the running mean of the weights, which is validated and kept.

Lightning has such a callback, too. It looks at a counter on the GPU after every step, which waits for the GPU; it has
one decay from the first step on, which leaves a short run with its random weights; and it averages tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from aneurysm.training.module import PatchModule


class Ema(pl.Callback):
    """
    Keeps ``mean = d * mean + (1 - d) * weights`` after every step, ``d`` rising to ``decay``.

    After t steps d is at most (1 + t) / (10 + t): at first the mean follows closely, as the weights are random still.
    Statistics of batch normalisation are averaged alike. With a decay of 0 the mean is the weights.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._model: nn.Module | None = None

    def setup(self, trainer: pl.Trainer, pl_module: PatchModule, stage: str) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take a copy of the model."""
        self._model = deepcopy(pl_module.model).requires_grad_(False).eval()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Follow the model to its device."""
        self.model.to(pl_module.device)

    @property
    def model(self) -> nn.Module:
        """The model with the mean of the weights, in evaluation mode."""
        assert self._model is not None
        return self._model

    @torch.no_grad()
    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: pl.Trainer,
        pl_module: PatchModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Take in the weights, if this batch has changed them."""
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.decay else 0.0
        mean, now = _tensors(self.model), _tensors(pl_module.model)
        floating = [(m, n) for m, n in zip(mean, now, strict=True) if m.is_floating_point()]
        torch._foreach_lerp_([m for m, _ in floating], [n for _, n in floating], 1 - decay)
        for m, n in zip(mean, now, strict=True):
            if not m.is_floating_point():
                m.copy_(n)

    def agree(self) -> None:
        """Give all ranks the first one's statistics of batch normalisation: each has seen other patches."""
        if torch.distributed.is_initialized():
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps; the mean itself is the checkpoint's ``model``."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.steps = state_dict["steps"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Go on from the mean of a checkpoint."""
        self.model.load_state_dict(checkpoint["model"])


def _tensors(model: nn.Module) -> Sequence[Tensor]:
    return [*model.parameters(), *model.buffers()]
