"""
GradCam: a classifier of windows -> the same, with a map of what speaks for a label (Selvaraju et al. 2017).

Such a map is coarse, and no probability: it says which cells of the last features raise the logit. Each window's map is
scaled so that its highest cell has the window's probability; windows that see nothing stay dark.

Of a U-Net, which has a map of its own, the cells of the deepest features are shown (Vinogradova et al. 2020), where it
sees the most of the head at once. Its last features are those that the map is a weighted sum of: Grad-CAM of them is
that map again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, relu

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS, LEFT_RIGHT_PAIRS
from aneurysm.models.output import ModelOutput, check_output

_NOTHING = 1e-6


class GradCam(nn.Module):
    """
    A classifier, or a U-Net, that shows where it looks.

    Parameters
    ----------
    model
        Its parameters are set to need no gradient.
    label
        Index into LABELS. The map of its mirror image is made, too, for an ensemble that flips; all others are empty.
    """

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__()
        # Then autograd follows from the features on, and what leads to them costs no more than without a map.
        self.model = model.requires_grad_(requires_grad=False)
        self._labels = {label, *(b for pair in LEFT_RIGHT_PAIRS for b in pair if label in pair)}
        self._layer: nn.Module | None = None

    def forward(self, image: Tensor) -> ModelOutput:
        """
        Map (B, C, Z, Y, X) in model units to the model's answer, and ``cam`` with one cell per voxel.

        Raises
        ------
        UsageError
            The model's own map is of its deepest features already, or it has no layer whose output is one.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            image = image.clone()  # one that was made in inference mode can't be differentiated by
            if self._layer is None:
                self._layer = _layer_to_show(self.model, image[:1])
            kept: list[Tensor] = []

            def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
                kept.append(output.detach().requires_grad_())
                return kept[-1].clone()  # which what follows may change in place

            hook = self._layer.register_forward_hook(keep)
            try:
                output = check_output(self.model(image), image)
            finally:
                hook.remove()
            features = kept[-1]
            shape = (len(image), len(LABELS), *image.shape[2:])
            cams = torch.full(shape, math.log(_NOTHING), dtype=torch.float32, device=image.device)
            for label in self._labels:
                logit = output.logits[:, label]
                (slope,) = torch.autograd.grad(logit.sum(), features, retain_graph=True)
                cam = relu((slope.float().mean((2, 3, 4), keepdim=True) * features.detach().float()).sum(1))
                shown = _on_voxels(cam, image.shape[2:], pooled=output.dense is not None)
                highest = shown.amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
                probability = shown / highest * logit.detach().float().sigmoid()[:, None, None, None]
                cams[:, label] = probability.logit(_NOTHING)
            own = None if output.dense is None else output.dense.detach()
            return ModelOutput(output.logits.detach(), own, output.stride_zyx, cam=cams)


def _layer_to_show(model: nn.Module, image: Tensor) -> nn.Module:
    """
    Return the module whose output is shown, of more than one cell.

    Of a classifier it is the last one, before the mean over the window; of a model with a map the last of those with
    the fewest cells, if these are fewer than the map's.
    """
    layers: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 5 and output[0, 0].numel() > 1:
            layers.append((module, output[0, 0].numel()))

    hooks = [module.register_forward_hook(note) for module in model.modules() if module is not model]
    try:
        dense = check_output(model(image), image).dense
    finally:
        for hook in hooks:
            hook.remove()
    if not layers:
        raise UsageError("no layer of the model has a map for --cam to show")
    if dense is None:
        return layers[-1][0]
    fewest = min(cells for _, cells in layers)
    if fewest >= dense[0, 0].numel():
        raise UsageError("the model's own map is of its deepest features, as --cam's would be: leave out --cam")
    return next(module for module, cells in reversed(layers) if cells == fewest)


def _on_voxels(cam: Tensor, window: torch.Size, *, pooled: bool) -> Tensor:
    """
    Return (B, Z, Y, X) from cells (B, z, y, x).

    Unlike a map that was trained to be one, a cell of features lies about its first voxel: there the fields of view of
    strided kernels of odd size are centred. Where a U-Net pools, each cell is of the voxels that it covers.
    """
    if pooled:
        return interpolate(cam[:, None], size=tuple(window), mode="trilinear", align_corners=False)[:, 0]
    strides = [-(-voxels // cells) for voxels, cells in zip(window, cam.shape[1:], strict=True)]
    size = [(cells - 1) * stride + 1 for cells, stride in zip(cam.shape[1:], strides, strict=True)]
    between = interpolate(cam[:, None], size=size, mode="trilinear", align_corners=True)
    beyond = [n for voxels, there in zip(window, size, strict=True) for n in (voxels - there, 0)]
    return pad(between, beyond[::-1], mode="replicate")[:, 0]
