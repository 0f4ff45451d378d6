"""Processes are started for the devices that there are, or it is said which there are."""

from __future__ import annotations

import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.models import device
from aneurysm.training import fit
from aneurysm.training.ranks import choose_ranks
from tests.support.train_runs import quick


def test_more_gpus_than_there_are_can_t_be_had(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="--devices 8: there are 2 GPUs here"):
        choose_ranks(8)


def test_more_processes_than_cpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "usable_cpus", lambda: 2)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.raises(UsageError, match=r"--devices 4: without a GPU .* 2 CPUs may be used here\. Give at most 2"):
        choose_ranks(4)


@pytest.mark.parametrize(
    "cpus, devices, gpu, workers",
    [(1, 1, False, 0), (2, 1, False, 1), (2, 4, False, 0), (16, 1, False, 1), (2, 4, True, 1), (64, 2, True, 16)],
)
def test_workers_follow_from_the_cpus_of_each_device(train_cache, monkeypatch, cpus, devices, gpu, workers):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(fit, "usable_cpus", lambda: cpus)
    assert fit.usual_workers(quick(train_cache, workers=None), devices) == workers
