"""map_batches(): answers in order, whatever becomes of the processes that give them."""

from __future__ import annotations

import os
import signal
import time

import pytest

from aneurysm.processes.children import Children, Limits
from aneurysm.processes.map_batches import map_batches


def squares(items: list[int]) -> list[object]:
    """Seven kills the process."""
    return [os.kill(os.getpid(), signal.SIGKILL) if i == 7 else i * i for i in items]


def naps(items: list[float]) -> list[object]:
    return [time.sleep(i) or i for i in items]


def processes(items: list[int]) -> list[object]:
    return [os.getpid() for _ in items]


def told(item, error):
    return item, str(error.reason)


def test_one_item_that_kills_its_process_is_told_and_no_other():
    found = list(map_batches(squares, list(range(10)), 4, 2, told))
    assert found == [0, 1, 4, 9, 16, 25, 36, (7, "worker_killed"), 64, 81]


def test_one_item_that_takes_too_long_is_told_and_no_other():
    found = list(map_batches(naps, [0.0, 600.0, 0.1], 3, 1, told, Limits(timeout_s=1.0)))
    assert found == [0.0, (600.0, "timed_out"), 0.1]


def floods(items: list[int]) -> list[object]:
    return [len(bytearray(n)) for n in items]


def test_one_item_that_takes_too_much_memory_at_once_is_told_and_no_other():
    found = list(map_batches(floods, [1, 900_000_000, 2], 3, 1, told, Limits(memory_mb=300)))
    assert found == [1, (900_000_000, "out_of_memory"), 2]


@pytest.mark.parametrize("workers", [1, 4])
def test_one_worker_is_a_process_of_its_own(workers):
    (found,) = set(map_batches(processes, [1, 2, 3], 3, workers, told))
    assert found != os.getpid()
    assert list(map_batches(processes, [], 3, workers, told)) == []


def test_no_worker_is_this_process():
    assert list(map_batches(processes, [1, 2, 3], 2, 0, told)) == [os.getpid()] * 3


def test_processes_that_are_given_are_used_and_left_running():
    with Children() as children:
        first = children.run(os.getpid)
        assert set(map_batches(processes, [1, 2, 3], 1, 1, told, processes=children)) == {first}
        assert children.run(os.getpid) == first
