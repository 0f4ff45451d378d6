"""LossWatch: the mean loss of an epoch, read from the device now and then, and the end of a run that diverges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aneurysm.errors import DivergedError
from aneurysm.training.config import ResolvedConfig
from aneurysm.training.timed_loader import MicroBatch


@dataclass(frozen=True)
class _Step:
    """What is kept of a batch until its losses are read; not its voxels."""

    epoch: int
    number: int
    losses: Tensor
    series_uid: tuple[str, ...]
    intensity: tuple[Tensor, Tensor, Tensor]


class LossWatch:
    """
    Collects the losses of an epoch's batches.

    To read a number from the device is to wait for all that it has in its queue; so it is done for many at once.

    Parameters
    ----------
    config
        Of the run.
    every
        Read after the first batch, and then after this many.

    Attributes
    ----------
    latest
        The mean loss of the batches that were read last; None at first.
    """

    def __init__(self, config: ResolvedConfig, every: int) -> None:
        self._config, self.every = config, every
        self.latest: float | None = None
        self._names: list[str] = []
        self._pending: list[_Step] = []
        self._sums: dict[str, float] = {}
        self._batches = 0

    def add(self, epoch: int, number: int, batch: MicroBatch, losses: Mapping[str, Tensor]) -> None:
        """
        Note the losses of a batch; now and then, read them.

        Parameters
        ----------
        epoch, number
            Of the batch in its epoch; both from 0.
        losses
            Shares of those of the step that the batch is of.

        Raises
        ------
        DivergedError
            As `read` does.
        """
        self._names = list(losses)
        # The mean over a step's batches is the step's.
        stacked = torch.stack([loss.detach() for loss in losses.values()]) * len(batch.step)
        patches = batch.batch
        intensity = (patches.scale, patches.offset, patches.window)
        self._pending.append(_Step(epoch, number, stacked, patches.series_uid, intensity))
        if len(self._pending) >= self.every or self.latest is None:
            self.read()

    def read(self) -> None:
        """
        Read what has not been read yet.

        Raises
        ------
        DivergedError
            A loss is NaN or infinite. What was saved before is sound.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        values = torch.stack([step.losses for step in pending]).tolist()
        for step, losses in zip(pending, values, strict=True):
            if not all(map(math.isfinite, losses)):
                raise DivergedError(_diverged(step, dict(zip(self._names, losses, strict=True)), self._config))
            for name, loss in zip(self._names, losses, strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + loss
        self._batches += len(values)
        self.latest = sum(losses[0] for losses in values) / len(values)

    def means(self) -> dict[str, float]:
        """Return the mean of each loss over the epoch so far, of what has been read."""
        return {name: total / self._batches for name, total in self._sums.items()}

    def restart(self) -> None:
        """Begin an epoch."""
        self._sums, self._batches = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {"sums": dict(self._sums), "batches": self._batches}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with the sums of a checkpoint."""
        self._sums, self._batches = dict(state_dict["sums"]), state_dict["batches"]


def _diverged(step: _Step, losses: Mapping[str, float], config: ResolvedConfig) -> str:
    at_fault = _not_finite(step)
    series = at_fault or list(dict.fromkeys(step.series_uid))
    names = ", ".join(series[:4]) + (f" and {len(series) - 4} more" if len(series) > 4 else "")
    terms = ", ".join(f"{name} {loss:g}" for name, loss in losses.items())
    if at_fault:
        advice = "their intensities are not finite: run aneurysm verify"
    else:
        advice = f"try a lower learning rate than {config.optimizer.learning_rate:g}"
        if config.precision == "fp16":
            advice += ", or --precision bf16, which does not overflow"
    return (
        f"the loss is not finite in epoch {step.epoch + 1} at step {step.number + 1} ({terms}), with patches of the "
        f"series {names}: {advice}"
    )


def _not_finite(step: _Step) -> list[str]:
    """Return the series whose voxels have no finite value in model units."""
    scale, offset, window = (t.cpu() for t in step.intensity)
    sound = torch.stack([scale, offset, 1 / (window[:, 1] - window[:, 0])]).isfinite().all(0).tolist()
    return list(dict.fromkeys(uid for uid, fine in zip(step.series_uid, sound, strict=True) if not fine))
