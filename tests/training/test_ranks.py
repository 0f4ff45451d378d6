"""Processes are started for the devices that there are, or it is said which there are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

from aneurysm.errors import AneurysmError, UsageError
from aneurysm.models import device
from aneurysm.training import fit
from aneurysm.training.ranks import Ranks, choose_ranks, gathered, joined, started_ranks
from tests.support.command import environment
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


def meet(ranks: Ranks) -> None:
    with joined(ranks):
        gathered(ranks.rank)


def fail(ranks: Ranks) -> None:
    raise UsageError(f"{ranks.rank} has nothing to do")


def crash(ranks: Ranks) -> None:
    raise IndexError(ranks.rank)


def die(_ranks: Ranks) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_ranks_meet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with started_ranks(Ranks(size=2), meet) as ranks, joined(ranks):
        assert gathered(ranks.rank) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "function, error, words",
    [
        (fail, UsageError, r"1 has nothing to do"),
        (crash, IndexError, r"1"),
        (die, AneurysmError, r"rank 1 of 2: .* was ended by SIGKILL: out of memory is the usual cause"),
    ],
)
def test_what_another_rank_ended_by_is_what_ends_the_block(function, error, words):
    with pytest.raises(error, match=words) as caught, started_ranks(Ranks(size=2), function, notice_s=60):
        raise RuntimeError("Connection closed by peer")
    assert str(caught.value.__cause__) == "Connection closed by peer"
    if function is crash:
        assert "in rank 1: Traceback" in caught.value.__notes__[0]
        assert "in crash" in caught.value.__notes__[0]


@pytest.mark.slow
def test_the_first_rank_s_own_error_is_not_replaced():
    with pytest.raises(UsageError, match="mine"), started_ranks(Ranks(size=2), die):
        raise UsageError("mine")


HELD = """
import time
from aneurysm.training.ranks import Ranks, started_ranks
from tests.training.test_ranks import die
with started_ranks(Ranks(size=2), die, grace_s=0.1):
    time.sleep(100)  # as a collective on a GPU, which no exception ends
"""


@pytest.mark.slow
def test_a_first_rank_that_would_wait_for_ever_ends_with_one_line():
    ran = subprocess.run(
        [sys.executable, "-c", HELD], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("aneurysm: rank 1 of 2: ")
    assert ran.stderr.count("\n") == 1
