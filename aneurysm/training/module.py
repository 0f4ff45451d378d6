"""PatchModule: one step of training, as Lightning calls it."""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS
from aneurysm.models.output import ModelOutput, check_output
from aneurysm.patches.augment import ModelInput, augment
from aneurysm.patches.batch import Batch
from aneurysm.patches.targets import map_targets
from aneurysm.training.config import ResolvedConfig
from aneurysm.training.objective import Objective, SampleCounts
from aneurysm.training.schedule import make_optimizer, rate_factor
from aneurysm.training.timed_loader import MicroBatch


class PatchModule(pl.LightningModule):
    """
    Augments a batch on the device, predicts, and returns the loss.

    Randomness of a step follows from the seed and the step's number: nothing of it has to be saved to go on exactly.

    Parameters
    ----------
    model
        Maps (B, C, Z, Y, X) to a `ModelOutput`.
    config
        Of the run.

    Attributes
    ----------
    has_begun
        What a checkpoint says of the run has been restored, and the first batch is to come.
    """

    def __init__(self, model: nn.Module, config: ResolvedConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        given = config.pos_weight
        if given == "auto":
            raise ValueError("pos_weight 'auto' has to be replaced by numbers before: they follow from the patches")
        weights = given if isinstance(given, tuple) else None if given is None else (given,) * len(LABELS)
        if config.channels_last:
            model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if config.compile:
            model.compile()  # in place: the names in the state dict stay
        of_labels = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.objective = Objective(config.losses, pos_weight=of_labels)
        self._checked = False
        self._inputs: deque[ModelInput] = deque()
        self._counts: SampleCounts | None = None
        self.has_begun = False

    @property
    def needs_vessels(self) -> bool:
        """Whether batches have to bring vessel masks."""
        return "vessels" in self.objective.weights

    def leaves_weights_out(self) -> bool:
        """
        Return True if a trained weight has no part in the losses, as of a head that no term asks for.

        DDP waits for the gradient of each, unless it is told to look for those without. Found by a forward pass without
        data; of a model that does not work so nobody knows, and DDP is to look.
        """
        try:
            model = deepcopy(self.model).to("meta").train()
            output = model.forward(torch.empty(2, self.config.in_channels, *self.config.patch, device="meta"))
            todo = [tensor.grad_fn for tensor in self.objective.taught(output)]
        except (RuntimeError, AttributeError, TypeError, ValueError):
            return True
        reached, seen = set(), set()
        while todo:
            if (step := todo.pop()) is None or step in seen:
                continue
            seen.add(step)
            todo += [before for before, _ in step.next_functions]
            reached.add(id(getattr(step, "variable", None)))
        return any(id(weight) not in reached for weight in model.parameters() if weight.requires_grad)

    def transfer_batch_to_device(
        self, batch: MicroBatch, device: torch.device, dataloader_idx: int  # noqa: ARG002
    ) -> MicroBatch:  # fmt: skip
        """Move all batches of a step with its first; from pinned memory the copy runs beside the device's work."""
        if batch.number > 0:
            return batch
        return MicroBatch(tuple(b.to(device, non_blocking=True) for b in batch.step), 0)

    def on_train_start(self) -> None:
        """Note that the state of the run is restored."""
        self.has_begun = True

    def on_train_batch_start(self, batch: MicroBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Seed torch for this step, on this rank."""
        step = self.trainer.current_epoch * self.config.steps_per_epoch + batch_idx
        torch.manual_seed(((self.config.seed * 1_000_003 + step) * 4096 + self.global_rank) % (1 << 63))

    def training_step(self, batch: MicroBatch, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """
        Return the loss, and each of its terms.

        They are shares of those of the whole step, over all its batches and ranks, times the number of shares: so the
        mean of the terms is the step's. The loss is scaled so that what Lightning does to gradients, division by
        ``optimizer.accumulate`` and the mean over ranks, leaves the step's, also if its batches are fewer.
        """
        if batch.number == 0:
            self._inputs = deque(self._augmented(b) for b in batch.step)
            self._counts = None
        given = self._inputs.popleft()
        image = given.image
        if self.config.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        output = self.model(image)
        if not self._checked:
            check_output(output, image)
            self._checked = True
        dense = self._lesions(given, output)
        if self._counts is None:
            self._counts = self._of_step(given, output, dense)
        losses = self.objective(output, given.targets, given.ignore, **self._masks(given, dense), counts=self._counts)
        shares = len(batch.step) * (torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)
        terms = {name: value * shares for name, value in losses.items()}
        terms["loss"] = terms["loss"] * (self.config.optimizer.accumulate / len(batch.step))
        return terms

    @torch.no_grad()
    def _augmented(self, batch: Batch) -> ModelInput:
        return augment(batch, self.config.augment, ct_windows_hu=self.config.ct_windows_hu)

    @torch.no_grad()
    def _of_step(self, first: ModelInput, output: ModelOutput, dense: Tensor | None) -> SampleCounts:
        """
        Return over how many values the losses' means are, in all batches of a step on all ranks.

        It takes the output for the first batch, which shows what the model's map is like.
        """
        counts = dict(self.objective.counts(first.ignore, **self._masks(first, dense)))
        for given in self._inputs:
            maps = self._lesions(given, output) if self.objective.has_filled_maps else None
            others = self.objective.counts(given.ignore, **self._masks(given, maps))
            counts = {name: count + others[name] for name, count in counts.items()}
        if not torch.distributed.is_initialized():
            return counts
        # Each rank has the same terms, and so the same names in the same order.
        summed = torch.stack(list(counts.values()))
        torch.distributed.all_reduce(summed)
        return dict(zip(counts, summed.unbind(), strict=True))

    @staticmethod
    def _masks(given: ModelInput, dense: Tensor | None) -> dict[str, Tensor | None]:
        return {
            "dense": dense,
            "unmapped": given.certain,
            "vessels": given.vessels,
            "has_vessels": given.has_vessels,
        }

    def _lesions(self, given: ModelInput, output: ModelOutput) -> Tensor | None:
        if not self.objective.has_maps or output.dense is None:
            return None
        stride, *others = output.stride_zyx
        if others != [stride, stride]:
            raise UsageError(f"a lesion map of {output.stride_zyx} voxels per cell: only cubes can be taught")
        return map_targets(
            given.lesions,
            len(given),
            self.config.patch,
            given.spacing_mm,
            radius_mm=self.config.lesion_radius_mm,
            kind=self.config.lesion_shape,
            stride=stride,
        )

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and its learning rate per step."""
        config = self.config.optimizer
        # The fused one takes gradients as the scaler of fp16 left them, before they could be clipped.
        fused = self.device.type == "cuda" and self.config.precision != "fp16"
        optimizer = make_optimizer(self.model, config, fused=fused)
        steps = self.config.optimizer_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(step, steps, config.warmup, config.final)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
