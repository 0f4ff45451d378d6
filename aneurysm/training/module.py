"""PatchModule: the losses of one batch of a training step."""

from __future__ import annotations

from collections import deque
from copy import deepcopy

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
from aneurysm.training.timed_loader import MicroBatch


class PatchModule(nn.Module):
    """
    Augments a batch on the device, predicts, and returns the losses.

    Parameters
    ----------
    model
        Maps (B, C, Z, Y, X) to a `ModelOutput`.
    config
        Of the run.
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

    def forward(self, batch: MicroBatch) -> dict[str, Tensor]:
        """
        Return the loss, and each of its terms.

        They are shares of those of the whole step, over all its batches and ranks, times the number of ranks, over
        which gradients are averaged: so the gradients of a step's batches add up to the step's.
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
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return {name: value * ranks for name, value in losses.items()}

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
