"""PatchModule: the losses of one batch of a training step."""

from __future__ import annotations

from collections import deque
from copy import deepcopy

import torch
from torch import Tensor, nn

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS
from aneurysm.models.device import set_channels_last
from aneurysm.models.output import ModelOutput, check_output
from aneurysm.patches.augment import ModelInput, augment
from aneurysm.patches.batch import Batch
from aneurysm.patches.targets import map_targets
from aneurysm.patches.views.view import View
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
    view
        What the model sees.
    """

    def __init__(self, model: nn.Module, config: ResolvedConfig, view: View) -> None:
        super().__init__()
        self.model, self.config, self.view = model, config, view
        factors = config.pos_weight
        if factors == "auto":
            raise ValueError("pos_weight 'auto' has to be replaced by numbers before: they follow from the patches")
        if isinstance(factors, float):
            factors = (factors,) * len(LABELS)
        if config.channels_last:
            set_channels_last(model)
        if config.compile:
            model.compile()  # in place: the names in the state dict stay
        pos_weight = None if factors is None else torch.tensor(factors, dtype=torch.float32)
        self.objective = Objective(config.losses, pos_weight=pos_weight)
        self._checked = False
        self._step_inputs: deque[ModelInput] = deque()
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
            channels = self.config.in_channels(self.view)
            output = model.forward(torch.empty(2, channels, *self.view.shape, device="meta"))
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
            self._step_inputs = deque(self._augmented(patches) for patches in batch.step)
            self._counts = None
        inputs = self._step_inputs.popleft()
        image = inputs.image
        if self.config.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        output = self.model(image)
        if not self._checked:
            check_output(output, image)
            self._checked = True
        lesion_map = self._lesion_map(inputs, output)
        if self._counts is None:
            self._counts = self._step_counts(inputs, output, lesion_map)
        masks = self._masks(inputs, lesion_map)
        losses = self.objective(output, inputs.targets, inputs.ignore, **masks, counts=self._counts)
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return {name: value * ranks for name, value in losses.items()}

    @torch.no_grad()
    def _augmented(self, patches: Batch) -> ModelInput:
        config = self.config
        return augment(patches, config.augment, ct_windows_hu=config.ct_windows_hu, mr_range=config.mr_range)

    @torch.no_grad()
    def _step_counts(self, first: ModelInput, output: ModelOutput, lesion_map: Tensor | None) -> SampleCounts:
        """
        Return over how many values the losses' means are, in all batches of a step on all ranks.

        It takes the output for the first batch, which shows what the model's map is like.
        """
        counts = dict(self.objective.counts(first.ignore, **self._masks(first, lesion_map)))
        for other in self._step_inputs:
            other_map = self._lesion_map(other, output) if self.objective.has_filled_maps else None
            more = self.objective.counts(other.ignore, **self._masks(other, other_map))
            counts = {name: count + more[name] for name, count in counts.items()}
        if not torch.distributed.is_initialized():
            return counts
        # Each rank has the same terms, and so the same names in the same order.
        summed = torch.stack(list(counts.values()))
        torch.distributed.all_reduce(summed)
        return dict(zip(counts, summed.unbind(), strict=True))

    @staticmethod
    def _masks(inputs: ModelInput, lesion_map: Tensor | None) -> dict[str, Tensor | None]:
        return {
            "dense": lesion_map,
            "unmapped": inputs.certain,
            "vessels": inputs.vessels,
            "has_vessels": inputs.has_vessels,
        }

    def _lesion_map(self, inputs: ModelInput, output: ModelOutput) -> Tensor | None:
        if not self.objective.has_maps or output.dense is None:
            return None
        if self.view.scope == "series":
            raise UsageError(
                "a lesion map can't be taught on pictures of a series, which have no lesion's place: take losses of "
                "logits alone, or a view of patches"
            )
        stride, *others = output.stride_zyx
        if others != [stride, stride]:
            raise UsageError(f"a lesion map of {output.stride_zyx} voxels per cell: only cubes can be taught")
        return map_targets(
            inputs.lesions,
            len(inputs),
            self.view.shape,
            inputs.spacing_mm,
            radius_mm=self.config.lesion_radius_mm,
            kind=self.config.lesion_shape,
            stride=stride,
        )
