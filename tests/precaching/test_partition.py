"""Which series a task of several takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aneurysm.errors import UsageError
from aneurysm.precaching.partition import Shard, find_shard

ARRAY = {
    "SLURM_ARRAY_TASK_ID": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "3",
    "SLURM_ARRAY_TASK_STEP": "1",
}


@given(
    sizes=st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 10**9), max_size=60), count=st.integers(1, 9)
)
def test_every_series_is_in_one_shard_and_the_shards_weigh_the_same(sizes, count):
    parts = [Shard(i, count).of(sizes) for i in range(count)]
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    loads = [sum(max(sizes[name], 1) for name in part) for part in parts]
    assert max(loads) - min(loads) <= max([1, *sizes.values()])


def test_the_parts_of_a_known_set():
    sizes = {"a": 10, "b": 7, "c": 6, "d": 5, "e": 0, "f": 0}
    assert Shard(0, 2).of(sizes) == {"a", "d"}
    assert Shard(1, 2).of(sizes) == {"b", "c", "e", "f"}
    assert Shard(1, 2).of(dict(reversed(sizes.items()))) == {"b", "c", "e", "f"}


@pytest.mark.parametrize(
    "given, environment, index, count",
    [
        ("1/4", {}, 1, 4),
        ("0/1", ARRAY, 0, 1),
        ("1/8", ARRAY, 1, 8),
        (None, ARRAY, 2, 4),
        ("/8", ARRAY, 2, 8),
        (None, ARRAY | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "4"}, 1, 4),
        (
            None,
            {
                "SLURM_ARRAY_TASK_ID": "15",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "5",
                "SLURM_ARRAY_TASK_MAX": "20",
                "SLURM_ARRAY_TASK_STEP": "5",
            },
            2,
            4,
        ),
        ("/3", {"JOB_COMPLETION_INDEX": "0"}, 0, 3),
        (None, {"JOB_COMPLETION_INDEX": "2", "ANEURYSM_SHARDS": "3"}, 2, 3),
    ],
)
def test_the_shard_is_named_or_is_the_jobs_task(given, environment, index, count):
    shard = find_shard(given, environment)
    assert shard is not None
    assert (shard.index, shard.count) == (index, count)


def test_no_shard_without_a_job():
    assert find_shard(None, {"SLURM_JOB_ID": "7"}) is None


@pytest.mark.parametrize(
    "given, environment, told",
    [
        ("4/4", {}, "the last is 3"),
        ("0/0", {}, "0/0"),
        ("-1/4", {}, "expected I/N"),
        ("4", {}, "expected I/N"),
        ("٣/4", {}, "expected I/N"),
        ("/4", {}, "which one"),
        ("/2", ARRAY, "the last is 1"),
        (None, {"JOB_COMPLETION_INDEX": "1"}, "--shard /N"),
        (None, ARRAY | {"SLURM_ARRAY_TASK_COUNT": "2"}, "gaps"),
        (None, {"SLURM_ARRAY_TASK_ID": "1"}, "--shard /N"),
        (None, ARRAY | {"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID is 'x'"),
    ],
)
def test_what_names_no_shard_is_refused(given, environment, told):
    with pytest.raises(UsageError, match=told):
        find_shard(given, environment)
