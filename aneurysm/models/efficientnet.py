"""
EfficientNet on pictures of a series, its slices or projections: one answer for the series (Tan and Le 2019).

The network of the system "EfficientNet-B3 on three slices": a backbone, channel attention, pooling, and a head each for
the 13 sites and for an aneurysm at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from aneurysm.errors import UsageError
from aneurysm.labels import LABELS
from aneurysm.models.imagenet_weights import Block, Padding, read_weights, state_for
from aneurysm.models.output import ModelOutput, start_at_prior

VARIANTS: Final = ("b0", "b1", "b2", "b3", "b4", "lite0")
_EPSILON: Final = {"symmetric": 1e-5, "tensorflow": 1e-3}
"""Of batch norm, in the networks whose weights these are: PyTorch's default, and that of the original."""
_MOMENTUM: Final = {"symmetric": 0.1, "tensorflow": 0.01}
"""Likewise. The smaller takes hundreds of steps to know the statistics: until then what is learned answers noise."""
_HIDDEN: Final = 384
_REDUCTION: Final = 16


class EfficientNetFeatures(nn.Module):
    """
    (N, C, Y, X) -> (N, ``channels``, Y / 32, X / 32), with random weights or those of a file.

    Parameters
    ----------
    variant
        One of `VARIANTS`; ``lite0`` is b0 without squeeze-and-excitation, with ReLU6.
    in_channels
        Of a picture.
    weights
        A file of ImageNet weights; see `aneurysm.models.imagenet_weights.read_weights`.

    Raises
    ------
    UsageError
        There is no such variant, or the weights can't be read or are of another one.
    """

    padding: Tensor
    """1 if pictures are padded as TensorFlow does. A part of the state: a checkpoint's weights are wrong without it."""

    def __init__(self, variant: str, in_channels: int, weights: str | Path | None = None) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise UsageError(f"there is no EfficientNet {variant!r}; choose from {', '.join(VARIANTS)}")
        # Here, not above: importing MONAI takes seconds.
        from monai.networks.nets.efficientnet import EfficientNetBN

        base = "b0" if variant == "lite0" else variant
        net: Any = EfficientNetBN(
            f"efficientnet-{base}", pretrained=False, spatial_dims=2, in_channels=in_channels, num_classes=1
        )
        self.channels: int = net._conv_head.out_channels  # noqa: SLF001 - MONAI has no public names for its parts
        self.net = net
        del net._fc  # noqa: SLF001
        if variant == "lite0":
            for block in self._blocks():
                block.has_se, block._swish = False, nn.ReLU6()  # noqa: SLF001
                del block._se_reduce, block._se_expand  # noqa: SLF001
            net._swish = nn.ReLU6()  # noqa: SLF001
        for module in (net, *self._blocks()):
            for name, child in list(module.named_children()):
                if name.endswith("_padding"):
                    # MONAI pads for one size of picture; ours have any. The convolutions pad themselves.
                    setattr(module, name, nn.Identity())
                elif isinstance(child, nn.Conv2d):
                    setattr(module, name, _PaddedConv2d.like(child))
        self.register_buffer("padding", torch.zeros((), dtype=torch.uint8))
        self.sha256 = ""
        if weights is not None:
            self._load(Path(weights))
        else:
            self._pad("symmetric")

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, C, Y, X) to features."""
        net = self.net
        x = net._swish(net._bn0(net._conv_stem(image)))  # noqa: SLF001
        for stage in net._blocks:  # noqa: SLF001
            x = stage(x)
        features: Tensor = net._swish(net._bn1(net._conv_head(x)))  # noqa: SLF001
        return features

    def _blocks(self) -> Iterator[Any]:
        return (block for stage in self.net._blocks for block in stage)  # noqa: SLF001

    def _load(self, path: Path) -> None:
        weights = read_weights(path)
        # MONAI counts blocks through, and stages beside.
        blocks = {
            f"_blocks.{stage}.{name}": Block(stage, number, block.expand_ratio != 1)
            for stage, sequence in enumerate(self.net._blocks)  # noqa: SLF001
            for number, (name, block) in enumerate(sequence.named_children())
        }
        self.net.load_state_dict(state_for(weights, self.net.state_dict(), blocks), strict=False)
        self.sha256 = weights.sha256
        self._pad(weights.padding)

    def _pad(self, padding: Padding) -> None:
        """Pad, and divide, as the network did in which the weights were trained."""
        self.padding.fill_(padding == "tensorflow")
        for module in self.net.modules():
            if isinstance(module, _PaddedConv2d):
                module.pads_as = padding
            elif isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = _EPSILON[padding], _MOMENTUM[padding]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        if (stored := state_dict.get(f"{prefix}padding")) is not None:
            self._pad("tensorflow" if bool(stored) else "symmetric")


class _PaddedConv2d(nn.Conv2d):
    """A convolution that pads by half of its kernel on all sides; or as TensorFlow, which pads more at the end."""

    pads_as: Padding = "symmetric"

    @classmethod
    def like(cls, conv: nn.Conv2d) -> _PaddedConv2d:
        """Return one with the weights of ``conv``."""
        new = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, groups=conv.groups,  # type: ignore[arg-type]
            bias=conv.bias is not None,
        )  # fmt: skip
        new.load_state_dict(conv.state_dict())
        return new

    def forward(self, image: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if self.pads_as == "symmetric" or kernel == 1:
            return functional.conv2d(image, self.weight, self.bias, self.stride, kernel // 2, 1, self.groups)
        sides: list[int] = []
        for size in (image.shape[3], image.shape[2]):
            more = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [more // 2, more - more // 2]
        return functional.conv2d(functional.pad(image, sides), self.weight, self.bias, self.stride, 0, 1, self.groups)


class ChannelAttention(nn.Module):
    """Weighs channels by their means (squeeze and excitation, Hu et al. 2018), in the last feature map alone."""

    def __init__(self, channels: int, reduction: int = _REDUCTION) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, Y, X) to the same shape."""
        weights = torch.sigmoid(self.excite(functional.relu(self.squeeze(features.mean((2, 3))))))
        return features * weights[:, :, None, None]


def picture_head(channels: int, outputs: int, dropout: float) -> nn.Sequential:
    """Return the head of a label group: (N, ``channels``) -> (N, ``outputs``) logits."""
    last = nn.Linear(_HIDDEN, outputs)
    start_at_prior(last, 0.05)
    return nn.Sequential(nn.Linear(channels, _HIDDEN), nn.BatchNorm1d(_HIDDEN), nn.ReLU(), nn.Dropout(dropout), last)


class EfficientNet(nn.Module):
    """
    Pictures of a series -> its 14 logits.

    Parameters
    ----------
    in_channels
        Of each picture.
    variant
        See `VARIANTS`.
    weights
        A file of ImageNet weights; random ones without.
    dropout_sites, dropout_present
        In the two heads.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        variant: str = "b3",
        weights: str | None = None,
        dropout_sites: float = 0.3,
        dropout_present: float = 0.2,
    ) -> None:
        super().__init__()
        self.features = EfficientNetFeatures(variant, in_channels, weights)
        self.attention = ChannelAttention(self.features.channels)
        self.sites = picture_head(self.features.channels, len(LABELS) - 1, dropout_sites)
        self.present = picture_head(self.features.channels, 1, dropout_present)

    def forward(self, image: Tensor) -> ModelOutput:
        """
        Map (B, C, K, Y, X), K pictures of each series, to the logits of each series.

        Features of several pictures are averaged. That slices are the channels of one is a matter of the view.

        Raises
        ------
        UsageError
            In training there is one series alone: the heads' batch norm has nothing to compare it with.
        """
        b, c, k, y, x = image.shape
        if self.training and b < 2:
            raise UsageError("this model normalises over the series of a batch: give --batch-size 2 or more")
        features = self.features(image.transpose(1, 2).reshape(b * k, c, y, x))
        pooled = self.attention(features).mean((2, 3)).unflatten(0, (b, k)).mean(1)
        return ModelOutput(torch.cat([self.sites(pooled), self.present(pooled)], 1))
