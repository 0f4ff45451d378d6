"""Checkpoints of small models with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from aneurysm.cache.spec import load_spec
from aneurysm.models.registry import build_model
from aneurysm.training.checkpoint import model_entries, save_atomically
from aneurysm.training.config_file import parse_config


def write_checkpoint(path: Path, seed: int, *, patch=(32, 32, 32), spec="rsna-1mm") -> Path:
    """As `aneurysm train` writes them."""
    config = parse_config(
        {"model": "resnet3d18-dense", "model_options": {"width": 0.0625}, "patch": patch}, "test"
    ).resolved()
    torch.manual_seed(seed)
    model = build_model(config.model, config.in_channels, **config.model_options)
    # As after training: a head that answers differently from place to place.
    torch.nn.init.normal_(model.head.weight)
    save_atomically(model_entries(model.state_dict(), config, load_spec(spec), 1, {"score": 0.5}), path)
    return path
