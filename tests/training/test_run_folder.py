"""A run's folder: one process at a time, what dead ones leave, and a disk that fills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aneurysm.errors import InterruptedRunError, NoSpaceError, UsageError
from aneurysm.training.fit import fit
from aneurysm.training.progress import Silent
from aneurysm.training.run_folder import RunFolder, locked_run
from tests.support.command import call_cli, end_all, environment, run_cli, start_cli
from tests.support.train_runs import quick, table

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_all()


class While(Silent):
    """Calls a function in the midst of a run."""

    def __init__(self, call):
        self._call = call

    def step(self, facts):
        if (facts.epoch, facts.step) == (1, 2):
            self._call()


def copied(straight, tmp_path) -> RunFolder:
    shutil.copytree(straight.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def command(cache, folder, *more):
    config = folder.parent / f"{folder.name}.toml"
    config.write_text(
        "model = 'tests.support.tiny:classifier'\npatch = [16, 16, 16]\nbatch_size = 4\nepochs = 2\nworkers = 0\n"
        "steps_per_epoch = 4\nfolds = 3\ndevices = 1\n"
    )
    return ["train", "--cache", cache.root, "--out", folder, "--config", config, *more]


def test_one_process_at_a_time_trains_in_a_folder(train_cache, tmp_path):
    """A second run, and one that goes on, are refused while the first one is at work; nobody says to remove it."""
    folder = RunFolder(tmp_path / "run")
    refused = []

    def others():
        for resume in (False, True):
            with pytest.raises(UsageError, match=r"another process is training in .*: wait until") as told:
                fit(quick(train_cache), folder, resume=resume)
            refused.append(str(told.value))
        ran = call_cli("train", "--out", folder.root, "--resume", "--cache", train_cache.root)
        refused.append(ran.err)
        assert ran.code == 2

    # Without a last.ckpt a command would see that there is nothing to go on from.
    fit(quick(train_cache, save_every=1), folder, progress=While(others))
    assert len(refused) == 3
    assert not any("remove" in text for text in refused)
    assert not folder.lock.exists()
    assert [row["epoch"] for row in table(folder.metrics)] == ["1", "2"]


def test_a_run_that_was_killed_is_resumed_at_once_and_what_it_left_is_swept(train_cache, straight, tmp_path):
    folder = copied(straight, tmp_path)
    for path in (
        folder.root / ".lock",
        folder.root / ".metrics.csv.0123abcd.tmp",
        folder.last.parent / ".last.ckpt.0123abcd.tmp",
    ):
        path.write_bytes(b"x")
    (folder.root / ".mine.tmp").touch()
    fit(quick(train_cache, epochs=3), folder, resume=True)
    assert sorted(p.name for p in folder.last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert sorted(p.name for p in folder.root.glob(".*")) == [".mine.tmp"]


@pytest.mark.slow
def test_workers_of_a_killed_run_do_not_hold_its_lock(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    process = start_cli(*command(train_cache, folder.root, "--workers", 2, "--epochs", 50))
    while not folder.last.exists():
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)  # it alone: its workers see it a second later
    process.wait()
    with locked_run(folder):
        pass


def test_a_folder_that_came_to_nothing_is_gone(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UsageError, match="fold"):
        fit(quick(train_cache, folds_file=str(tmp_path / "none.csv")), folder)
    assert list(tmp_path.iterdir()) == []


def test_another_user_can_not_be_waited_for(straight, tmp_path, monkeypatch):
    folder = copied(straight, tmp_path)
    monkeypatch.setattr(
        "aneurysm.training.run_folder.take_lock",
        lambda path: (_ for _ in ()).throw(PermissionError(13, "no", str(path))),
    )
    with pytest.raises(UsageError, match=r"can't be made: no: .* belongs to user"), locked_run(folder):
        raise AssertionError("got it")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; gone after the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a file system is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    with (folder / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


@pytest.mark.parametrize("when", ["in the first epoch", "in the second epoch", "before it goes on"])
def test_a_disk_that_fills_ends_the_run_with_the_advice_to_resume(train_cache, small_disk, when, capfd):
    """Whatever cleaning up then raises: the log, the event file and the tables can't be written, either."""
    folder = RunFolder(small_disk / "run")
    epochs = 1 if when == "before it goes on" else 3
    config = quick(train_cache, epochs=epochs)

    class Fills(Silent):
        def step(self, facts):
            if (facts.epoch, facts.step) == (1 if when == "in the first epoch" else 2, 2):
                fill(small_disk)

    if when == "before it goes on":
        fit(config, folder)
        fill(small_disk)
        config = quick(train_cache, epochs=3)
        words = "The last checkpoint is whole: free some space, and go on with --out .*run --resume"
    elif when == "in the first epoch":
        words = "There is no checkpoint to go on from yet: free some space, remove .*run, and begin again"
    else:
        words = "The last checkpoint is whole: free some space, and go on with --out .*run --resume"
    capfd.readouterr()
    with pytest.raises(NoSpaceError, match=words):
        fit(config, folder, resume=when == "before it goes on", progress=Fills())
    assert "Traceback" not in capfd.readouterr().err
    (small_disk / "ballast").unlink()
    if when == "in the first epoch":
        return
    fit(quick(train_cache, epochs=3), folder, resume=True)
    assert [row["epoch"] for row in table(folder.metrics)] == ["1", "2", "3"]
    assert sorted(p.name for p in folder.last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.slow
def test_the_command_ends_with_exit_code_5_on_a_full_disk(train_cache, small_disk, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FILLS.format(disk=str(small_disk)))
    ran = run_cli(*command(train_cache, small_disk / "run", "--epochs", 4), env=environment(first_path=site))
    assert ran.code == 5, ran.text
    assert "--resume" in ran.err
    assert "Traceback" not in ran.text
    assert "Logging error" not in ran.text
    (small_disk / "ballast").unlink()
    ran = run_cli("train", "--out", small_disk / "run", "--resume")
    assert ran.code == 0, ran.text


FILLS = """
import threading, time
from pathlib import Path
disk = Path({disk!r})
def fill():
    while not (disk / "run" / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    with (disk / "ballast").open("ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                time.sleep(0.001)
import sys
if "train" in sys.argv:
    threading.Thread(target=fill, daemon=True).start()
"""


def test_an_interrupted_run_lets_go_of_its_folder(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        fit(quick(train_cache), folder, progress=While(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert not folder.lock.exists()
    assert fit(quick(train_cache), folder, resume=True).epochs == 2
