"""Which of a run's processes this one is, by what torchrun or Slurm says."""

from __future__ import annotations

import os

import pytest

from aneurysm.training.launcher import (
    LaunchedProcess,
    first_node,
    is_first_process,
    launched_process,
    set_meeting_point,
)
from aneurysm.training.ranks import Ranks, choose_ranks

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NAME": "train",
    "SLURM_JOB_ID": "1234567",
    "SLURM_NODELIST": "gpu[03-04]",
}


@pytest.fixture(autouse=True)
def _launched_by_nothing(monkeypatch) -> None:
    for name in (*TORCHRUN, *SLURM, "SLURM_STEP_NODELIST", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("environment", [TORCHRUN, SLURM], ids=["torchrun", "Slurm"])
def test_a_launched_process_knows_its_rank(monkeypatch, environment):
    launch(monkeypatch, **environment)
    assert launched_process() == LaunchedProcess(5, 8, 1, 4)
    assert not is_first_process()
    ranks = choose_ranks("auto")
    assert (ranks.rank, ranks.size, ranks.local_rank, ranks.local_size, ranks.is_launched) == (5, 8, 1, 4, True)


@pytest.mark.parametrize(
    "environment", [{}, {**SLURM, "SLURM_JOB_NAME": "bash"}], ids=["alone", "in a shell of Slurm's"]
)
def test_a_process_that_somebody_typed_is_the_first(monkeypatch, environment):
    launch(monkeypatch, **environment)
    assert launched_process() is None
    assert is_first_process()


def test_one_task_of_slurm_s_starts_processes_for_its_devices_itself(monkeypatch):
    launch(monkeypatch, **SLURM | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_ranks(3) == Ranks(size=3, local_size=3, threads=choose_ranks(3).threads)


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("gpu7", "gpu7"),
        ("gpu7,cpu1", "gpu7"),
        ("gpu[03-05,09],cpu1", "gpu03"),
        ("gpu[7]", "gpu7"),
        ("rack[2,4]-ib", "rack2-ib"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_first_of_slurm_s_nodes_is_where_processes_meet(monkeypatch, nodes, first):
    assert first_node(nodes) == first
    launch(monkeypatch, **SLURM | {"SLURM_NODELIST": nodes})
    monkeypatch.setenv("MASTER_ADDR", "removed after the test")
    monkeypatch.setenv("MASTER_PORT", "too")
    del os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    set_meeting_point()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == (first, "19567")


def test_what_torchrun_says_of_the_meeting_point_stays(monkeypatch):
    launch(monkeypatch, **TORCHRUN, MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    set_meeting_point()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "29500")
