"""Which series a task of several takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aneurysm.errors import UsageError
from aneurysm.precaching.partition import deal, find_shard

ARRAY = {
    "SLURM_ARRAY_TASK_ID": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "3",
    "SLURM_ARRAY_TASK_STEP": "1",
}


def alone(task: int) -> dict[str, str]:
    """The environment of ``sbatch --array=TASK``."""
    return {
        "SLURM_ARRAY_TASK_ID": f"{task}",
        "SLURM_ARRAY_TASK_COUNT": "1",
        "SLURM_ARRAY_TASK_MIN": f"{task}",
        "SLURM_ARRAY_TASK_MAX": f"{task}",
        "SLURM_ARRAY_TASK_STEP": "1",
    }


@given(
    weights=st.lists(st.integers(0, 10**9), max_size=60).map(lambda w: np.array(w, np.int64))
    | st.lists(st.floats(0, 1e9, allow_subnormal=False), max_size=60).map(lambda w: np.array(w, float)),
    count=st.integers(1, 9),
)
def test_every_series_is_in_one_part_and_the_parts_weigh_the_same(weights, count):
    parts = deal(weights, count)
    assert len(parts) == count
    assert sorted(np.concatenate(parts)) == list(range(len(weights)))
    # Graham's bound of any list, and that of the spread: what weighs nothing counts as the lightest that is known.
    heavy = np.maximum(weights, min(weights[weights > 0], default=1))
    loads = [heavy[part].sum() for part in parts]
    heaviest = max(heavy, default=0)
    assert max(loads) <= (sum(loads) / count + heaviest * (1 - 1 / count)) * (1 + 1e-9)
    assert max(loads) - min(loads) <= heaviest * (1 + 1e-9)


def test_the_parts_of_a_known_set():
    weights = np.array([10, 7, 6, 5, 0, 0])
    assert [part.tolist() for part in deal(weights, 2)] == [[0, 3, 5], [1, 2, 4]]
    assert [part.tolist() for part in deal(weights, 1)] == [[0, 1, 2, 3, 4, 5]]
    assert [part.tolist() for part in deal(np.zeros(0), 3)] == [[], [], []]


@pytest.mark.parametrize(
    "given, environment, index, count",
    [
        ("1/4", {}, 1, 4),
        ("0/1", ARRAY, 0, 1),
        ("1/8", ARRAY, 1, 8),
        (None, ARRAY, 2, 4),
        ("/8", ARRAY, 2, 8),
        ("/8", alone(2), 2, 8),
        ("0/1", alone(2), 0, 1),
        (None, alone(0), 0, 1),
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
        (None, alone(2), "--shard /N.*--shard 0/1"),
        (None, ARRAY | {"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID is 'x'"),
    ],
)
def test_what_names_no_shard_is_refused(given, environment, told):
    with pytest.raises(UsageError, match=told):
        find_shard(given, environment)
