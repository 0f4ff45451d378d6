"""The Slurm job of docs/cluster.md in a real Slurm: a task is killed, a node lost, and nothing else is."""

from __future__ import annotations

import grp
import json
import os
import pty
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.built import Built
from tests.support.cache_state import leftovers, same_cache, volume_paths
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
    return prepared(tmp_path)


def prepared(folder: Path) -> Path:
    """Write the files of the page to a folder, which is made, and the command."""
    (folder / "bin").mkdir(parents=True)
    (folder / "site").mkdir()
    for name in ("precache.sbatch", "submit.sh", "dask_cluster.py"):
        (folder / name).write_text(listing(name))
    command = folder / "bin" / "aneurysm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m aneurysm "$@"\n')
    command.chmod(0o755)
    (folder / "site" / "sitecustomize.py").write_text(SLOW)
    return folder


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
    return [process for process in slurm.processes(**variables) if " -m aneurysm " in " ".join(process.cmdline())]


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


def test_a_rerun_deals_out_evenly_what_is_missing_and_is_watched(long_run: Built, work: Path) -> None:
    """A third of the volumes is gone. A task whose code is of another recipe does nothing of it."""
    cache = work / "cache"
    shutil.copytree(long_run.cache, cache)
    shutil.rmtree(cache / ".runs")
    for volume in volume_paths(cache)[:3]:
        shutil.rmtree(volume)
    small(work / "precache.sbatch", tasks=3)
    old = 'if "OF_ANOTHER_RECIPE" in os.environ:\n    import aneurysm.spec\n\n    aneurysm.spec.RECIPE_VERSION += 1\n'
    with (work / "site" / "sitecustomize.py").open("a") as site:
        site.write(old)
    with loopback_slurm(job_environment(work, long_run.data)) as slurm:
        options = ("--parsable", "--array=0", "--output=refused.log")
        refused = slurm.run("sbatch", *options, "precache.sbatch", cwd=work, OF_ANOTHER_RECIPE="1")
        slurm.wait(lambda: not slurm.jobs(), 90, "the end of the task of another recipe")
        assert slurm.run("scontrol", "show", "job", f"{refused}_0").count("ExitCode=2:0") == 1
        array = submit(slurm, work)[0]
        slurm.wait(lambda: list((cache / ".runs" / array).glob("*.jsonl")), 60, "a first task")
        shown = watched_in_a_terminal(cache, slurm.environment)
        slurm.wait(lambda: not slurm.jobs(), 300, "the end of all jobs")
    assert "of recipe" in (work / "refused.log").read_text(), logs(work)
    ledgers = sorted((cache / ".runs" / array).glob("*.jsonl"))
    events = [[json.loads(line) for line in path.read_text().splitlines()] for path in ledgers]
    todo = {of[0]["task"]: entry["todo"] for of in events for entry in of if entry["event"] == "run_started"}
    assert todo == {"0/3": 1, "1/3": 1, "2/3": 1}, logs(work)
    assert f"run {array}" in shown
    assert "in hand" in shown
    assert f"{len(long_run.uids)} of {len(long_run.uids)} series (100.0 %), complete" in shown
    assert same_cache(cache, long_run.cache) == [], logs(work)
    assert leftovers(cache) == []


def watched_in_a_terminal(cache: Path, env: dict[str, str]) -> str:
    """What `aneurysm status --watch` shows on a terminal until the run is over."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "aneurysm", "status", "--cache", str(cache), "--watch", "--every-s", "0.5"]
    size = {"COLUMNS": "160", "LINES": "50", "TERM": "xterm"}
    process = subprocess.Popen(command, env=env | size, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how the end of a terminal shows
        while some := os.read(ours, 65536):
            shown += some
    os.close(ours)
    assert process.wait(60) == 0, shown[-2000:]
    return shown.decode()


@pytest.mark.usefixtures("other_users")
def test_two_users_of_a_group_build_one_cache_at_once(long_run: Built) -> None:
    """Each by an array of his own; one hides all that he makes by his umask. A task of the first is killed."""
    names = {"games": "077", "backup": "002"}
    group = "audio"
    try:
        gid, uids = grp.getgrnam(group).gr_gid, {pwd.getpwnam(name).pw_uid for name in names}
    except KeyError as error:
        pytest.skip(f"no such user or group: {error}")
    base = Path(tempfile.mkdtemp())
    try:
        base.chmod(0o755)
        shutil.copytree(long_run.data, base / "data")
        for path in (base / "data", *(base / "data").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        work = prepared(base / "work")
        cache = work / "cache"
        cache.mkdir()
        os.chown(cache, min(uids), gid)
        cache.chmod(0o2770)
        small(work / "precache.sbatch", tasks=2)
        with loopback_slurm(job_environment(work, base / "data"), several_users=True) as slurm:
            arrays = {}
            for name, umask in names.items():
                folder = work / name
                folder.mkdir()
                folder.chmod(0o777)
                script = f'umask {umask}; exec sbatch "$@"'
                user = [f"--uid={name}", f"--gid={group}", f"--chdir={folder}"]
                arrays[name] = slurm.run("sh", "-c", script, "sh", "--parsable", *user, work / "precache.sbatch")
            tables = ["--output=manifest.log", "--wrap", 'aneurysm manifest --data "$DATA" --cache "$CACHE"']
            after = f"--dependency=afterany:{':'.join(arrays.values())}"
            slurm.run("sbatch", after, *user, *tables)
            slurm.wait(lambda: published(cache), 90, "a first volume")
            first = arrays["games"]
            slurm.wait(lambda: precache_processes(slurm, SLURM_ARRAY_JOB_ID=first), 60, "a task of the first user")
            task = precache_processes(slurm, SLURM_ARRAY_JOB_ID=first)[0].environ()["SLURM_ARRAY_TASK_ID"]
            assert kill_precache(slurm, first, task)
            slurm.wait(lambda: f"{first}_{task}" not in slurm.jobs(), 60, "the end of the killed task")
            slurm.run("scontrol", "requeue", f"{first}_{task}")
            slurm.wait(lambda: not slurm.jobs(), 300, "the end of all jobs")
        said = "".join(logs(work / name) for name in names)
        assert same_cache(cache, long_run.cache) == [], said
        assert leftovers(cache) == []
        assert {p.stat().st_uid for p in (cache / "volumes").rglob("*.zarr")} == uids, said
        modes = {(p.stat().st_gid, p.stat().st_mode & 0o060) for p in cache.rglob("*")}
        assert {group for group, _ in modes} == {gid}, said
        assert {mode for _, mode in modes} == {0o060}, said
        assert "Traceback" not in said
        assert "denied" not in said
    finally:
        shutil.rmtree(base)


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
