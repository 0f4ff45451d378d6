"""Learner: a model with its optimiser, its learning rate, the scaler of fp16, and the running mean of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aneurysm.errors import DeviceMemoryError
from aneurysm.models.device import is_out_of_memory
from aneurysm.training.config import ResolvedConfig, ResolvedOptimizer
from aneurysm.training.ema import Ema
from aneurysm.training.module import PatchModule
from aneurysm.training.ranks import Ranks
from aneurysm.training.timed_loader import MicroBatch

_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """
    Learns from batches, step by step of the optimiser.

    Parameters
    ----------
    module
        Computes the losses of a batch; it is moved to this rank's device.
    config
        Of the run.
    ranks
        Whose gradients are averaged.

    Attributes
    ----------
    steps
        Of the optimiser so far; those that fp16 had to leave out count, too.
    """

    def __init__(self, module: PatchModule, config: ResolvedConfig, ranks: Ranks) -> None:
        self._config, self.device = config, ranks.device
        self.module = module.to(self.device).train()
        self._replica: nn.Module = module
        if ranks.size > 1:
            self._replica = DistributedDataParallel(
                module,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                find_unused_parameters=module.leaves_weights_out(),
            )
        # The fused one takes gradients as the scaler of fp16 left them, before they could be clipped.
        fused = self.device.type == "cuda" and config.precision != "fp16"
        self.optimizer = make_optimizer(module.model, config.optimizer, fused=fused)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.ema = Ema(module.model, config.optimizer.ema_decay)
        self.steps = 0
        self._set_rate()

    def step(self, batch: MicroBatch) -> dict[str, Tensor]:
        """
        Add the gradients of a batch; with the last one of its step, change the weights, and their mean.

        Returns
        -------
        dict
            The losses, of which `PatchModule.forward` says more. Nothing has waited for them.
        """
        is_last = batch.number + 1 == len(batch.step)
        with nullcontext() if is_last else self._without_exchange():
            losses = self.losses(batch)
            self.backward(losses["loss"])
        if is_last:
            self.update()
        return losses

    def losses(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Return the losses of a batch, the first part of `step`."""
        dtype = _DTYPES[self._config.precision]
        # Weights change between the steps alone, but the cache would hold copies of them over a step's batches.
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            losses: dict[str, Tensor] = self._replica(batch.to(self.device))
        return losses

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, the second part."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Change the weights and their mean, the last part."""
        self._scaler.unscale_(self.optimizer)
        if clip_norm := self._config.optimizer.clip_norm:
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(weights, clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        self.steps += 1
        self._set_rate()
        self.ema.update(self.module.model, self.steps)

    @property
    def learning_rate(self) -> float:
        """Of the step that follows."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Return the entries of a checkpoint that `load_state_dict` takes, but for the mean of the weights."""
        return {
            "state_dict": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "global_step": self.steps,
        }

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        """Resume from a checkpoint. The next step is at the rate that was set when it was saved."""
        self.module.load_state_dict(content["state_dict"])
        self.ema.load_weights(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(content["scaler"])
        self.steps = int(content["global_step"])

    def _without_exchange(self) -> AbstractContextManager[None]:
        """Let gradients stay on their rank: they are averaged with those of the step's last batch."""
        if isinstance(self._replica, DistributedDataParallel):
            return self._replica.no_sync()
        return nullcontext()

    def _set_rate(self) -> None:
        config = self._config.optimizer
        factor = rate_factor(self.steps, self._config.optimizer_steps, config.warmup, config.final)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor


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


@contextmanager
def raise_step_memory(config: ResolvedConfig, samples: str, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory into a `DeviceMemoryError`, which says what was used, and what to lower."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        has = ""
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory / 1e9
            has = (
                f", which has {total:.0f} GB, of which {torch.cuda.max_memory_allocated(device) / 1e9:.0f} were in use"
            )
        raise DeviceMemoryError(
            f"out of memory on {device}{has}, with batches of {config.batch_size} {samples} in "
            f"{config.precision} (in validation: {config.validation.batch_size} at once). Lower --batch-size (with "
            f"optimizer.accumulate the steps stay the same) or {'--patch' if config.patch else 'size_mm of the view'}"
            + (", or take --precision bf16" if config.precision == "fp32" and device.type == "cuda" else "")
        ) from error
