"""A file of ImageNet weights -> the state of our EfficientNets, whichever program wrote it; never downloaded.

Three layouts of names are in use, and two of the arithmetic behind them: TensorFlow's, in which the original weights
were trained (lukemelas' and MONAI's names), and PyTorch's own (torchvision, and timm's ports that were trained anew).
The tensors' shapes are the same in all: weights fit where they are wrong, and only the answers show it. So the
padding and the epsilon that belong to the weights come with them.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from aneurysm.errors import UsageError

Padding = Literal["symmetric", "tensorflow"]

_MOST_BYTES: Final = 2**30
_MBCONV: Final = {
    "torchvision": {
        True: ("0.0", "0.1", "1.0", "1.1", "2.fc1", "2.fc2", "3.0", "3.1"),
        False: (None, None, "0.0", "0.1", "1.fc1", "1.fc2", "2.0", "2.1"),
    },
    "timm": {
        True: ("conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3"),
        False: (None, None, "conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2"),
    },
}
"""Parts of a block, with and without an expansion, in the order of `_OURS`."""
_OURS: Final = (
    "_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2",
)  # fmt: skip
_ENDS: Final = {
    "torchvision": ("features.0.0", "features.0.1", "features.8.0", "features.8.1"),
    "timm": ("conv_stem", "bn1", "conv_head", "bn2"),
}
"""Stem and head, as `_OUR_ENDS`."""
_OUR_ENDS: Final = ("_conv_stem", "_bn0", "_conv_head", "_bn1")
_COUNTER: Final = "num_batches_tracked"
"""Of batch norms; older files lack it, and nothing depends on it."""


class Block(NamedTuple):
    """Where a block stands, and whether it expands its channels."""

    stage: int
    number: int
    expands: bool


@dataclass(frozen=True)
class ImageNetWeights:
    """
    Weights by the names of the program that wrote them.

    Attributes
    ----------
    tensors
        By name.
    layout
        Whose names they are.
    padding
        How the network that they were trained in pads.
    sha256
        Of the file.
    """

    tensors: Mapping[str, Tensor]
    layout: Literal["torchvision", "timm", "lukemelas"]
    padding: Padding
    sha256: str


def read_weights(path: Path) -> ImageNetWeights:
    """
    Return the weights in a file, ``.safetensors`` or what torch saves; nothing in it is executed.

    Raises
    ------
    UsageError
        It can't be read, or has another model's weights.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"the weights {path} have more than {_MOST_BYTES} bytes: they are no EfficientNet's")
        content = path.read_bytes()
        tensors = load_safetensors(content) if path.suffix == ".safetensors" else _saved(path)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise UsageError(f"the weights {path} can't be read: {str(error).splitlines()[0]}") from error
    for first, layout in (("features.0.0.weight", "torchvision"), ("conv_stem.weight", "timm")):
        if first in tensors:
            return ImageNetWeights(tensors, layout, "symmetric", hashlib.sha256(content).hexdigest())  # type: ignore[arg-type]
    if "_conv_stem.weight" in tensors:
        return ImageNetWeights(tensors, "lukemelas", "tensorflow", hashlib.sha256(content).hexdigest())
    names = ", ".join(list(tensors)[:3])
    raise UsageError(
        f"the weights {path} are of no EfficientNet that is known here: they begin with {names or 'nothing'}, and not "
        "with features.0.0 (torchvision), conv_stem (timm) or _conv_stem (MONAI, efficientnet_pytorch)"
    )


def _saved(path: Path) -> Mapping[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols that torch itself does not write
        state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping):
        state = next((state[k] for k in ("state_dict", "model") if isinstance(state.get(k), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError("it is no dictionary of tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def state_for(weights: ImageNetWeights, wanted: Mapping[str, Tensor], blocks: Mapping[str, Block]) -> dict[str, Tensor]:
    """
    Return ``weights`` by the names of a network of ours.

    Parameters
    ----------
    weights
        As read.
    wanted
        The network's state; entries without a counterpart in any layout are the caller's to leave out.
    blocks
        Its blocks, in order, by name.

    Raises
    ------
    UsageError
        They are those of a network of another size.
    """
    names = _names(weights.layout, blocks)
    state = {}
    for name, tensor in wanted.items():
        part, _, kind = name.rpartition(".")
        if kind == _COUNTER:
            continue
        source = weights.tensors.get(f"{names[part]}.{kind}")
        if source is None:
            raise UsageError(f"the weights lack {names[part]}.{kind}: they are of another EfficientNet")
        state[name] = _adapted(source, tensor, name)
    return state


def _names(layout: str, blocks: Mapping[str, Block]) -> dict[str, str]:
    """Return the names in a file of the parts of a network, by ours."""
    if layout == "lukemelas":
        names = {end: end for end in _OUR_ENDS}
        for i, block in enumerate(blocks):
            names |= {f"{block}.{part}": f"_blocks.{i}.{part}" for part in _OURS}
        return names
    names = dict(zip(_OUR_ENDS, _ENDS[layout], strict=True))
    for block, (stage, number, expands) in blocks.items():
        prefix = f"features.{stage + 1}.{number}.block" if layout == "torchvision" else f"blocks.{stage}.{number}"
        parts = zip(_OURS, _MBCONV[layout][expands], strict=True)
        names |= {f"{block}.{ours}": f"{prefix}.{theirs}" for ours, theirs in parts if theirs is not None}
    return names


def _adapted(source: Tensor, wanted: Tensor, name: str) -> Tensor:
    """Return ``source``; a first convolution of colours is adapted to the channels that are ``wanted``."""
    if name == "_conv_stem.weight" and source.shape != wanted.shape and source.shape[0] == wanted.shape[0]:
        # The answer to grey pictures stays what it was: the colours' weights added up, shared by the channels.
        return source.sum(1, keepdim=True).expand_as(wanted) / wanted.shape[1]
    if source.shape != wanted.shape:
        raise UsageError(
            f"the weights' {name} has shape {tuple(source.shape)}, and the model's {tuple(wanted.shape)}: they are of "
            "another EfficientNet"
        )
    return source
