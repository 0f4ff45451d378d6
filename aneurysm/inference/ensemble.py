"""Several models, and what they say of the mirrored head, as one model: the mean of their logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from aneurysm.errors import UsageError
from aneurysm.models.output import ModelOutput, check_output
from aneurysm.patches.picture_geometry import mirrored_pictures
from aneurysm.patches.spatial import mirrored_labels
from aneurysm.patches.views.view import Planes


class Ensemble(nn.Module):
    """
    Means of logits, and of maps if all members have maps of the same cells.

    Parameters
    ----------
    members
        Models that take the same input.
    flip
        Also show them each window mirrored left to right, and swap the sides in their answers.
    planes
        How pictures lie in the head, if it is pictures that they look at; see `aneurysm.patches.views.view.Pictures`.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        *,
        flip: bool = False,
        planes: Planes | None = None,
    ) -> None:
        super().__init__()
        self.members, self.flip, self._planes = nn.ModuleList(members), flip, planes

    def forward(self, image: Tensor) -> ModelOutput:
        """
        Map (B, C, Z, Y, X) in model units to the mean answer.

        Raises
        ------
        UsageError
            A mirrored map can't be laid over the other: the window is no whole number of its cells wide.
        """
        logits: Tensor | None = None
        cam: Tensor | None = None
        maps: list[Tensor] | None = []
        strides = set()
        count = 0
        for output in self._outputs(image):
            logits = output.logits.float() if logits is None else logits + output.logits.float()
            count += 1
            strides.add(output.stride_zyx)
            if output.cam is not None:  # of all members or none
                cam = output.cam.float().clone() if cam is None else cam.add_(output.cam)
            if output.dense is None or len(strides) > 1:
                maps = None
            elif maps is not None:
                # A sum, not a list: at full resolution each map takes a hundred megabytes.
                maps = [maps[0].add_(output.dense) if maps else output.dense.float().clone()]
        assert logits is not None
        shown = None if cam is None else cam.div_(count)
        if maps:
            return ModelOutput(logits / count, maps[0].div_(count), strides.pop(), cam=shown)
        return ModelOutput(logits / count, cam=shown)

    def _outputs(self, image: Tensor) -> Iterator[ModelOutput]:
        mirrored = None
        if self.flip:
            mirrored = image.flip(-1) if self._planes is None else mirrored_pictures(image, self._planes)
        for member in self.members:
            yield check_output(member(image), image)
            if mirrored is not None:
                yield self._mirrored_back(check_output(member(mirrored), image), image)

    def _mirrored_back(self, output: ModelOutput, image: Tensor) -> ModelOutput:
        labels = mirrored_labels(image.device)
        dense = output.dense
        if dense is not None:
            stride = output.stride_zyx[2]
            if image.shape[-1] % stride:
                raise UsageError(
                    f"windows {image.shape[-1]} voxels wide can't be mirrored: the model's cells are {stride} voxels "
                    "wide"
                )
            back = dense.flip(-1) if self._planes is None else mirrored_pictures(dense, self._planes[:1])
            dense = torch.index_select(back, 1, labels)
        # No map to look at is made of pictures.
        cam = None if output.cam is None else torch.index_select(output.cam.flip(-1), 1, labels)
        return ModelOutput(output.logits[:, labels], dense, output.stride_zyx, cam=cam)
