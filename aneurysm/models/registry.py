"""The architectures by name, each with defaults that train it sensibly; `module:function` names one of your own."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from torch import nn

from aneurysm.errors import UsageError
from aneurysm.models.attention_mil import AttentionMIL
from aneurysm.models.cnn3d import CNN3d
from aneurysm.models.efficientnet import EfficientNet
from aneurysm.models.resnet3d import ResNet3d
from aneurysm.models.resnet3d_dense import ResNet3dDense
from aneurysm.models.unet3d import UNet3d
from aneurysm.patches.views.config import Patch3dConfig, SlicesConfig, ViewConfig

PRETRAINED: Final = "weights"
"""The option, of a model that has it, that names a file of weights to begin from."""
_PATCHES: Final = Patch3dConfig()


@dataclass(frozen=True)
class Architecture:
    """
    A model by name.

    Attributes
    ----------
    name
        In the registry, or ``module:function``.
    build
        ``build(in_channels, **options)`` returns a module that maps (B, C, Z, Y, X) to a `ModelOutput`.
    patch_shape
        Voxels (z, y, x) of a training patch.
    batch_size
        Patches per step and GPU.
    learning_rate, weight_decay
        Of AdamW.
    losses
        Terms of `aneurysm.training.objective.Objective` and their weights.
    pooling
        From patches to the series: a key of `aneurysm.models.pooling.POOLINGS`.
    view
        What it sees: patches of ``patch_shape``, or something else.
    """

    name: str
    build: Callable[..., nn.Module]
    patch_shape: tuple[int, int, int] = (96, 96, 96)
    batch_size: int = 8
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    losses: Mapping[str, float] = field(default_factory=lambda: {"bce": 1.0})
    pooling: str = "max"
    view: ViewConfig = _PATCHES


_MAP_LOSSES = {"bce": 1.0, "dense_top_k": 1.0, "consistency": 0.1}
ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        Architecture("resnet3d18", ResNet3d, (64, 64, 64), 32, losses={"bce": 1.0, "consistency": 0.1}),
        Architecture(
            "resnet3d34", partial(ResNet3d, depth=34), (64, 64, 64), 32, losses={"bce": 1.0, "consistency": 0.1}
        ),
        Architecture("resnet3d18-dense", ResNet3dDense, batch_size=8, losses=_MAP_LOSSES),
        Architecture("cnn3d", CNN3d, (32, 32, 32), 16, learning_rate=4e-3, losses={"bce": 1.0, "dense_top_k": 1.0}),
        Architecture("efficientnet-b3", EfficientNet, batch_size=16, learning_rate=1e-4, view=SlicesConfig(count=3)),
        Architecture("efficientnet-b0", partial(EfficientNet, variant="b0"), batch_size=16, view=SlicesConfig(count=3)),
        Architecture(
            "attention-mil",
            AttentionMIL,
            learning_rate=2e-4,
            view=SlicesConfig(count=16, pick="vascular", neighbours=1, stack="bag"),
        ),
        Architecture("unet3d", UNet3d, (64, 128, 128), 4, learning_rate=1e-3, losses=_MAP_LOSSES),
    )
}
"""What ships with the package."""


def shipped_architecture(name: str) -> Architecture:
    """
    Return an architecture of this package: what a checkpoint may name.

    A name such as ``module:function`` runs whatever code it points to: it must come from the user, never from a file.

    Raises
    ------
    UsageError
        There is none of that name; the message lists those that there are, the nearest first.
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"there is no model {name!r}. {hint}There are {', '.join(ARCHITECTURES)}; module:function names your own"
        )
    return ARCHITECTURES[name]


def find_architecture(name: str) -> Architecture:
    """
    Return the architecture of that name, or import it, if ``name`` is ``module:attribute``.

    The attribute is a function that builds the model, then with the defaults of `Architecture`; or an `Architecture`.

    Raises
    ------
    UsageError
        There is none of that name.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        return shipped_architecture(name)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"can't import the model {name!r}: {error}. Is its folder in PYTHONPATH?") from error
    if isinstance(found, Architecture):
        return found
    if not callable(found):
        raise UsageError(f"the model {name!r} is {type(found).__name__}, neither a function nor an Architecture")
    return Architecture(name, found)


def build_model(name: str, in_channels: int = 1, **options: Any) -> nn.Module:
    """
    Build the model of that name, with random weights; ``options`` are its builder's.

    Raises
    ------
    UsageError
        There is no such model, it has no such option, or not that value, or what was built is no module.
    """
    architecture = find_architecture(name)
    try:
        model = architecture.build(in_channels, **options)
    except UsageError:  # a ValueError, too
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UsageError(f"can't build the model {name!r} with options {options}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name!r} built {type(model).__name__}, not a torch.nn.Module")
    return model
