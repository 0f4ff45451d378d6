"""The Slurm job of docs/cluster.md in a real Slurm: a task is killed, a node lost, and nothing else is."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.built import Built
from tests.support.cache_state import leftovers, same_cache
from tests.support.command import environment, start_cli
from tests.support.run_data import ROOT
from tests.support.running import published
from tests.support.slurm import Slurm, loopback_slurm, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=f"Slurm can't be started: {why_not()}"),
]

# A series takes a second longer than it would, so that there is a midst of the run.
SLOW = """
import os, sys, time

seen = set()

def wait(event, args):
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        folder, name = os.path.split(os.fsdecode(args[0]))
        if name.endswith(".dcm") and folder not in seen:
            seen.add(folder)
            time.sleep(1)

sys.addaudithook(wait)
"""


def listing(name: str) -> str:
    """A file of docs/cluster.md, as it stands there."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    found = re.search(rf"`{re.escape(name)}`.*?\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with the files of the page, and a command `aneurysm` that is this checkout."""
    for name in ("precache.sbatch", "submit.sh", "dask_cluster.py"):
        (tmp_path / name).write_text(listing(name))
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "aneurysm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m aneurysm.cli.main "$@"\n')
    command.chmod(0o755)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW)
    return tmp_path


def job_environment(work: Path, data: Path, **more: str) -> dict[str, str]:
    env = environment(first_path=work / "site", DATA=str(data), CACHE=str(work / "cache"), **more)
    return env | {"PATH": f"{work / 'bin'}:{env['PATH']}"}


def small(script: Path, tasks: int) -> None:
    """Ask for what one machine has."""
    text = script.read_text()
    smaller = {"array=0-31": f"array=0-{tasks - 1}", "cpus-per-task=4": "cpus-per-task=1"}
    for old, new in smaller.items():
        assert old in text
        text = text.replace(old, new)
    script.write_text(text)


def logs(work: Path) -> str:
    return "\n".join(f"== {p.name}\n{p.read_text()[-2000:]}" for p in sorted(work.glob("*.log")))


def test_an_array_that_loses_a_task_and_a_node(long_run: Built, work: Path) -> None:
    cache = work / "cache"
    small(work / "precache.sbatch", tasks=4)
    with loopback_slurm(job_environment(work, long_run.data)) as slurm:
        told = submit(slurm, work)
        array = told[0]
        slurm.wait(lambda: published(cache), 90, "a first volume")
        states = slurm.run("squeue", "--array", "--noheader", "--states=RUNNING", "--format=%K %N").splitlines()
        running = dict(line.split() for line in states)
        task = next(task for task, node in running.items() if node == "n1")
        assert "n2" in running.values(), running
        killed = kill_precache(slurm, array, task)
        assert killed, "no process of the task was found"
        slurm.kill("n2")
        slurm.wait(lambda: f"{array}_{task}" not in slurm.jobs(), 60, "the end of the killed task")
        assert len(published(cache)) < len(long_run.uids), "it was over before the kill"
        slurm.run("scontrol", "requeue", f"{array}_{task}")
        slurm.wait(lambda: "down" in slurm.run("sinfo", "--noheader", "--nodes=n2", "--format=%t"), 90, "a lost node")
        slurm.start_node("n2")
        slurm.wait(lambda: not slurm.jobs(), 300, "the end of all jobs")
    assert f"{len(long_run.uids)} volumes; 0 series" in (work / "manifest.log").read_text(), logs(work)
    assert same_cache(cache, long_run.cache) == [], logs(work)
    assert leftovers(cache) == []
    assert "Traceback" not in logs(work)


def submit(slurm: Slurm, work: Path) -> list[str]:
    """Run submit.sh; return the numbers of the array and of the job behind it."""
    done = subprocess.run(
        ["bash", "-x", "submit.sh"], cwd=work, env=slurm.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    numbers = re.findall(r"array=(\d+)|Submitted batch job (\d+)", done.stderr + done.stdout)
    return [a or b for a, b in numbers]


def kill_precache(slurm: Slurm, array: str, task: str) -> list[psutil.Process]:
    """SIGKILL to the processes that build, of one task."""
    found = precache_processes(slurm, SLURM_ARRAY_JOB_ID=array, SLURM_ARRAY_TASK_ID=task)
    for process in found:
        process.send_signal(signal.SIGKILL)
    return found


def precache_processes(slurm: Slurm, **variables: str) -> list[psutil.Process]:
    return [process for process in slurm.processes(**variables) if "aneurysm.cli.main" in process.cmdline()]


def test_preempted_tasks_drop_what_they_hold_within_seconds(long_run: Built, work: Path) -> None:
    cache = work / "cache"
    small(work / "precache.sbatch", tasks=2)
    with loopback_slurm(job_environment(work, long_run.data)) as slurm:
        array = submit(slurm, work)[0]
        slurm.wait(lambda: published(cache), 90, "a first volume")
        running = precache_processes(slurm, SLURM_ARRAY_JOB_ID=array)
        assert running
        slurm.run("scontrol", "requeue", array)  # as preemption does
        _, alive = psutil.wait_procs(running, timeout=20)
        assert not alive, "SIGTERM did not end it, and SIGKILL comes after 30 s"
        slurm.wait(lambda: not slurm.jobs(), 300, "the end of all jobs")
    assert same_cache(cache, long_run.cache) == [], logs(work)
    assert leftovers(cache) == []


def test_dask_jobqueue_makes_a_cluster_that_precache_takes(long_run: Built, work: Path) -> None:
    cache = work / "cache"
    script = (work / "dask_cluster.py").read_text()
    assert "cores=8" in script
    assert "processes=8" in script
    (work / "dask_cluster.py").write_text(script.replace("cores=8", "cores=1").replace("processes=8", "processes=1"))
    local = {"DASK_JOBQUEUE__SLURM__INTERFACE": "lo", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "3"}
    with loopback_slurm(job_environment(work, long_run.data, JOBS="2", **local)) as slurm:
        cluster = subprocess.Popen(
            [sys.executable, "dask_cluster.py"], cwd=work, env=slurm.environment, stdout=subprocess.PIPE, text=True
        )
        try:
            assert cluster.stdout is not None
            address = cluster.stdout.readline().strip()
            assert address.startswith("tcp://127.0.0.1:"), address
            slurm.wait(lambda: list(slurm.jobs().values()) == ["RUNNING"] * 2, 60, "the cluster's jobs")
            run = start_cli(
                *("precache", "--data", long_run.data, "--cache", cache, "--workers", 1, "--dask", address),
                env=slurm.environment,
            )
            slurm.wait(lambda: published(cache), 90, "a first volume")
            slurm.run("scancel", min(slurm.jobs()))
            out, err = run.communicate(timeout=180)
        finally:
            cluster.terminate()
            cluster.wait(60)
            cluster.stdout.close()  # type: ignore[union-attr]
    assert run.returncode == 0, out + err
    assert "Traceback" not in out + err
    assert same_cache(cache, long_run.cache) == []
    assert leftovers(cache) == []
