"""Checkpoints of small models with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from aneurysm.models.registry import build_model
from aneurysm.spec import load_spec
from aneurysm.training.checkpoint import model_entries, save_atomically
from aneurysm.training.config_file import parse_config

PREVALENCE = [0.01 * (k + 1) for k in range(13)] + [0.43]
SMALL = {"model": "resnet3d18-dense", "model_options": {"width": 0.0625}}


def write_checkpoint(
    path: Path, seed: int, *, patch=(32, 32, 32), spec="rsna-1mm", model=SMALL, prevalence=PREVALENCE,
    modalities=("CTA", "MRA"),
) -> Path:  # fmt: skip
    """As `aneurysm train` writes them; without ``prevalence`` or ``modalities``, as it used to."""
    config = parse_config({**model, "patch": patch}, "test").resolved()
    torch.manual_seed(seed)
    network = build_model(config.model, config.in_channels(config.view_on(load_spec(spec))), **config.model_options)
    # As after training: a head that answers differently from place to place.
    torch.nn.init.normal_(network.head.weight)
    entries = model_entries(
        network.state_dict(), config, load_spec(spec), 1, {"score": 0.5}, prevalence or (), modalities or ()
    )
    if prevalence is None:
        del entries["prevalence"]
    if modalities is None:
        del entries["modalities"]
    save_atomically(entries, path)
    return path
