"""Looking at many things at once."""

from __future__ import annotations

import threading

import pytest

from aneurysm.processes.threads import map_io


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_results_come_in_the_order_of_the_items(count):
    assert list(map_io(range(count), lambda n: n * n)) == [n * n for n in range(count)]


def test_several_looks_run_at_once():
    """Each of the first two batches waits for the other: one after the other would wait for ever."""
    both = threading.Barrier(2, timeout=30)
    assert len(list(map_io(range(128), lambda n: both.wait() if n in (0, 64) else 0))) == 128


def test_an_error_of_one_look_comes_out():
    with pytest.raises(ZeroDivisionError):
        list(map_io([1, 0], lambda n: 1 / n))


def test_results_that_nobody_takes_do_not_pile_up():
    looked: list[int] = []
    results = map_io(range(100_000), looked.append, batch=1)
    assert next(results) is None
    results.close()
    assert 0 < len(looked) < 100
