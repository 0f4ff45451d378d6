"""ModelOutput: what every model returns, and the two steps that the architectures share."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor, nn

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS


class ModelOutput(NamedTuple):
    """
    Logits of a batch of B patches; channels are in the order of `aneurysm.labels.LABELS`.

    A tuple of tensors, because DDP and torch.compile look into tuples.

    Attributes
    ----------
    logits
        (B, 14): of the whole patch.
    dense
        (B, 14, z, y, x): logits of each cell of a map of lesions; None if the model has no map.
    stride_zyx
        Voxels per cell of ``dense``. Cell i covers the voxels from s * i up to, not including, s * (i + 1), so its
        centre has the voxel coordinate s * i + (s - 1) / 2. The last cell may reach beyond the patch.
    coarser
        Maps like ``dense`` at 2, 4, ... times its stride, for deep supervision; in training mode only.
    vessels
        (B, 14, Z, Y, X): logits of each voxel's vessel: the 13 sites, then "any vessel". None if there is no such head.
    cam
        (B, 14, Z, Y, X): logits of a map to look at; see `aneurysm.inference.grad_cam`. No model makes one by itself.
    """

    logits: Tensor
    dense: Tensor | None = None
    stride_zyx: tuple[int, int, int] = (1, 1, 1)
    coarser: tuple[Tensor, ...] = ()
    vessels: Tensor | None = None
    cam: Tensor | None = None


def check_output(output: Any, image: Tensor) -> ModelOutput:
    """
    Return ``output``, if it is what a model must return for ``image`` of shape (B, C, Z, Y, X).

    Raises
    ------
    UsageError
        It is not; for architectures of one's own, which should hear of it before the first epoch.
    """
    if not isinstance(output, ModelOutput):
        raise UsageError(f"the model returned {type(output).__name__}, not aneurysm.models.output.ModelOutput")
    batch, n = len(image), len(LABELS)
    _check("logits", output.logits, (batch, n))
    if output.dense is not None:
        cells = [-(-size // stride) for size, stride in zip(image.shape[2:], output.stride_zyx, strict=True)]
        _check("dense", output.dense, (batch, n, *cells))
    for level, dense in enumerate(output.coarser, 1):
        if output.dense is None:
            raise UsageError("the model's output has 'coarser' maps, but 'dense' is None")
        _check(f"coarser[{level - 1}]", dense, (batch, n, *(size >> level for size in output.dense.shape[2:])))
    if output.vessels is not None:
        _check("vessels", output.vessels, (batch, n, *image.shape[2:]))
    return output


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise UsageError(f"the model's output {name!r} has shape {tuple(tensor.shape)}, expected {shape}")


def mean_of_top(dense: Tensor, n: int) -> Tensor:
    """
    Return (B, C) float32, the mean of the ``n`` highest cells of each channel of (B, C, z, y, x), or of all if fewer.

    Between the maximum (n = 1), which trains one cell at a time, and the mean, in which a lesion of few cells drowns.
    """
    cells = dense.flatten(2)
    # Under mixed precision the few that count are summed in float32; a copy of the whole map would cost its size again.
    return cells.topk(min(n, cells.shape[2]), dim=2, sorted=False).values.float().mean(2)


def start_at_prior(head: nn.Linear | nn.Conv3d, probability: float) -> None:
    """
    Let a last layer answer ``probability`` for everything at first (Lin et al. 2017, section 3.3).

    Almost all targets are 0: from 0.5 the first hundred steps would do nothing but learn that.
    """
    assert head.bias is not None
    nn.init.normal_(head.weight, std=0.01)
    nn.init.constant_(head.bias, math.log(probability / (1 - probability)))
