"""The name of a run: one for all tasks of an array, and never the name of another folder."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aneurysm.cache.layout import CacheLayout
from aneurysm.errors import UsageError
from aneurysm.precaching.run_id import given_run_id, job_name, run_id


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, None),
        ({"ANEURYSM_RUN": " "}, None),
        ({"SLURM_JOB_ID": "77"}, "77"),
        ({"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "7"}, "70"),
        ({"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "ANEURYSM_RUN": "rsna-2"}, "rsna-2"),
    ],
)
def test_all_tasks_of_an_array_are_of_one_run(environ, name):
    assert given_run_id(environ) == name
    if name:
        assert run_id(environ) == name


def test_without_a_name_each_run_has_a_new_one_and_later_ones_sort_last():
    names = [run_id({}) for _ in range(3)]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", name) for name in names)


@pytest.mark.parametrize("name", ["..", "a/b", "/etc", ".hidden", "a b", "x" * 65, "a\nb", "ü"])
def test_what_is_no_name_of_a_folder_is_refused(name):
    with pytest.raises(UsageError, match=r"ANEURYSM_RUN is .*letters"):
        given_run_id({"ANEURYSM_RUN": name})


@given(st.text(min_size=1, max_size=80))
def test_a_name_that_is_taken_stays_below_the_cache(tmp_path_factory, name):
    runs = CacheLayout(tmp_path_factory.getbasetemp() / "cache").runs
    try:
        accepted = given_run_id({"ANEURYSM_RUN": name})
    except UsageError:
        return
    if accepted is not None:
        assert (runs / accepted).resolve().parent == runs.resolve()


def test_jobs_are_called_as_the_batch_system_calls_them():
    assert job_name({"SLURM_JOB_ID": "77"}) == "77"
    assert job_name({"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}) == "70_3"
    assert job_name({"SLURM_JOB_ID": "7\n7/.."}) == "7-7-.."
    assert job_name({}) == ""
