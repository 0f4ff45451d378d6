"""The simulator of workers and storage, where the answer is known."""

from __future__ import annotations

import pytest

from benchmarks.makespan import Costs, Job, least, makespan, rsna_jobs

ENDLESS = 1e18


def jobs(*cpu_s: float, size: float = 0.0) -> list[Job]:
    return [Job(str(i), size, s) for i, s in enumerate(cpu_s)]


@pytest.mark.parametrize("workers, expected", [(1, 24.0), (2, 12.0), (5, 6.0), (12, 2.0), (100, 2.0)])
def test_equal_jobs_without_reading_go_in_waves(workers, expected):
    assert makespan([jobs(*[2.0] * 12)], workers, ENDLESS) == pytest.approx(expected)


def test_one_worker_reads_then_computes_one_series_after_the_other():
    mixed = [Job("a", 100, 1), Job("b", 300, 0), Job("c", 0, 5)]
    for order in (mixed, mixed[::-1]):
        assert makespan([order], 1, 50) == pytest.approx((100 + 300) / 50 + 6)
    assert least(mixed, 1, 50) == pytest.approx(14)


def test_all_that_read_share_the_storage():
    """Ten readers of 10 bytes each at 10 bytes a second are all done after ten seconds, however many."""
    assert makespan([jobs(*[0.0] * 10, size=10)], 10, 10) == pytest.approx(10)
    assert makespan([jobs(*[0.0] * 10, size=10)], 1, 10) == pytest.approx(10)


def test_the_share_changes_when_one_stops_reading():
    """By hand: both read at 5; at 2 the first has its 10 and computes, the second reads on at 10 and has 30 at 4."""
    two = [Job("a", 10, 1), Job("b", 30, 3)]
    assert makespan([two], 2, 10) == pytest.approx(7)
    # And a third, started by the first at 3 when 20 of b are read: both at 5, so b has 30 at 5, and c its 15 at 5.5.
    assert makespan([[*two, Job("c", 15, 10)]], 2, 10) == pytest.approx(15.5)


def test_a_huge_series_last_is_what_costs():
    small = jobs(*[1.0] * 20)
    huge = [Job("huge", 0, 10.0)]
    assert makespan([huge + small], 3, ENDLESS) == pytest.approx(10)
    assert makespan([small + huge], 3, ENDLESS) == pytest.approx(6 + 10)
    assert least(small + huge, 3, ENDLESS) == pytest.approx(10)


def test_queues_of_their_own_do_not_help_each_other():
    assert makespan([jobs(1, 1, 1, 1), jobs(1)], 1, ENDLESS) == pytest.approx(4)
    assert makespan([jobs(1, 1, 1, 1), jobs(1)], 2, ENDLESS) == pytest.approx(2)
    assert makespan([jobs(1, 1, 1, 1, 1)], 2, ENDLESS) == pytest.approx(3)
    assert makespan([[], []], 4, ENDLESS) == 0


def test_queues_that_help_each_other():
    """By hand: the second takes the last series but one of the first at 1, and is done with it when that is."""
    assert makespan([jobs(1, 1, 1, 1), jobs(1)], 1, ENDLESS, stealing=True) == pytest.approx(3)
    assert makespan([jobs(4, 3, 2, 1), [], []], 1, ENDLESS, stealing=True) == pytest.approx(4)
    assert makespan([[], []], 4, ENDLESS, stealing=True) == 0
    one = jobs(5, 4, 3, 3, 2, 1)
    assert makespan([one, []], 1, ENDLESS, stealing=True) == pytest.approx(makespan([one], 2, ENDLESS))


@pytest.mark.parametrize("workers", [1, 7, 64])
@pytest.mark.parametrize("bandwidth", [1e8, 4e9])
def test_nothing_beats_the_ideal_and_a_queue_is_at_most_twice_as_long(workers, bandwidth):
    """Graham's bound holds for computing; here reading is shared as well, so it is tried and not proved."""
    drawn = rsna_jobs(Costs(0.2, 0.01, 0.02), seed=workers)[::10]
    found = makespan([drawn], workers, bandwidth)
    ideal = least(drawn, workers, bandwidth)
    assert ideal * (1 - 1e-9) <= found <= 2 * ideal


def test_the_drawn_set_is_as_large_as_the_real_one():
    drawn = rsna_jobs(Costs(0.0, 1.0, 0.0))
    assert len(drawn) == len({j.uid for j in drawn}) == 4348
    assert sum(j.size for j in drawn) == pytest.approx(311e9, rel=0.001)
    assert sum(j.cpu_s for j in drawn) == pytest.approx(556e3)
    assert rsna_jobs(Costs(1.0, 0.0, 0.0))[17].cpu_s == 1.0
    unpacked = sum(j.size for j in rsna_jobs(Costs(0.0, 0.0, 1.0)) if not j.packed)
    packed = [j for j in rsna_jobs(Costs(0.0, 0.0, 1.0)) if j.packed]
    assert all(j.size * 2.5 == pytest.approx(j.cpu_s * 1e6) for j in packed)
    assert unpacked + sum(j.cpu_s * 1e6 for j in packed) == pytest.approx(556e9)
