"""in_batches(): answers in order, whatever becomes of the processes that give them."""

from __future__ import annotations

import os
import signal
import time

import pytest

from aneurysm.cache.batches import in_batches
from aneurysm.cache.supervisor import Limits


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
    found = list(in_batches(squares, list(range(10)), 4, 2, told))
    assert found == [0, 1, 4, 9, 16, 25, 36, (7, "worker_killed"), 64, 81]


def test_one_item_that_takes_too_long_is_told_and_no_other():
    found = list(in_batches(naps, [0.0, 600.0, 0.1], 3, 1, told, Limits(timeout_s=1.0)))
    assert found == [0.0, (600.0, "timed_out"), 0.1]


@pytest.mark.parametrize("workers", [1, 4])
def test_no_process_starts_where_one_worker_is_enough(workers):
    assert list(in_batches(processes, [1, 2, 3], 3, workers, told)) == [os.getpid()] * 3
    assert list(in_batches(processes, [], 3, workers, told)) == []
