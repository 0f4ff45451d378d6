"""The trainer is made for the devices that there are, or it is said which there are."""

from __future__ import annotations

import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.training.trainer import make_trainer
from tests.training.conftest import quick


def test_more_gpus_than_there_are_can_t_be_had(train_cache, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="--devices 8: there are 2 GPUs here"):
        make_trainer(quick(train_cache, devices=8))
