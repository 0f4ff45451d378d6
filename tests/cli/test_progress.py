"""How a command shows how far it is: on a terminal, and where its output goes to a file."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from aneurysm.cli import progress
from aneurysm.cli.progress import Clock, Display, PrecacheProgress, series_share, series_text
from aneurysm.cli.train_progress import TrainProgress
from aneurysm.precaching.build_series import Outcome
from aneurysm.precaching.run_id import host_name
from aneurysm.rawdata.folder import Inventory
from aneurysm.training.progress import RunFacts, StepFacts
from tests.support.command import environment

HOST = re.escape(host_name())


@pytest.fixture(autouse=True)
def _no_job(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clock(monkeypatch):
    """A time that stands still until it is set."""
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def console(*, terminal: bool = False) -> Console:
    return Console(file=StringIO(), width=200, force_terminal=terminal)


def said(console: Console) -> str:
    return console.file.getvalue()


def log_lines(console: Console) -> list[str]:
    """What was said into a log, without the time and host that each line begins with."""
    stamped = [
        re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ {HOST} (.*)", line) for line in said(console).splitlines()
    ]
    assert all(stamped), said(console)
    return [line[1] for line in stamped if line]


def test_a_line_comes_every_so_often_whether_or_not_there_is_news(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)
    out = console()
    with PrecacheProgress(out) as display:
        display.started(Inventory("data", "rsna", []), 3, 0, 3000)
        end = time.monotonic() + 20
        while said(out).count("0 of 3 series") < 2 and time.monotonic() < end:
            time.sleep(0.01)
        display.finished(Outcome("1.1", "cached", bytes_in=1000))
        while "1 of 3 series" not in said(out) and time.monotonic() < end:
            time.sleep(0.01)
    assert time.monotonic() < end
    before = said(out)
    time.sleep(0.2)
    assert said(out) == before


def test_the_time_left_follows_from_the_share_that_is_done(clock):
    left = Clock()
    assert left.left(0.0) == ""
    clock.s += 60
    assert left.left(0.0) == left.left(None) == "0:01:00 so far"
    assert left.left(0.25) == "0:03:00 left"
    assert left.left(1.0) == ""
    # Stuck: the estimate grows, and never comes to its end.
    clock.s += 60
    assert left.left(0.25) == "0:06:00 left"
    resumed = Clock()
    assert resumed.left(0.5) == ""
    clock.s += 3600
    assert resumed.left(0.75) == "1:00:00 left"


def test_before_the_first_series_there_is_no_rate_and_no_end(clock):
    out = console()
    display = PrecacheProgress(out)
    display.started(Inventory("data", "rsna", []), 23, 0, 10**9)
    clock.s += 60
    display.line()
    assert log_lines(out)[1] == "precache: 0:01:00 so far, 0 of 23 series"
    display.finished(Outcome("1.1", "cached", bytes_in=10**8))
    display.line()
    line = "precache: 0:09:00 left, 1 of 23 series, 1.0 series/min, 1.6 MiB/s"
    assert log_lines(out)[2] == line
    # More bytes than were estimated: there is still something to do.
    display.finished(Outcome("1.2", "failed", "read_error", "it broke", bytes_in=2 * 10**9))
    assert log_lines(out)[3] == "failed 1.2: read_error: it broke"
    display.line()
    assert log_lines(out)[4] == "precache: 0:00:00 left, 2 of 23 series, 2.0 series/min, 33.4 MiB/s, 1 not cached"
    display.close()


def test_the_search_for_series_is_shown(clock):
    out = console()
    with PrecacheProgress(out) as display:
        clock.s += 25
        display.line()
    assert log_lines(out) == ["precache: 0:00:25 so far, looking for series"]


def test_lines_of_a_log_say_which_task_of_which_job_wrote_them(monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    out, shown = console(), console(terminal=True)
    PrecacheProgress(out, task="3/32").say("a line")
    assert log_lines(out) == ["job=70_3 task=3/32 a line"]
    PrecacheProgress(shown, task="3/32").say("a line")
    assert said(shown) == "a line\n"


def test_series_and_windows_are_counted():
    assert series_text(3, 24) == "3 of 24 series"
    assert series_text(3, 24, 40, 160) == "3 of 24 series, window 40 of 160"
    assert series_share(3, 24, 40, 160) == pytest.approx(3.25 / 24)
    assert series_share(0, 0) == 0.0


FACTS = RunFacts(
    folder="run", device="CPU", model="m", train=(3, 2), val=(2, 1), limit="", samples="patches",
    batch_size=2, epochs=2,
    steps_per_epoch=4, first_epoch=0,
)  # fmt: skip


def test_training_shows_the_loss_of_the_first_step_and_windows_of_validation(clock):
    out = console()
    with TrainProgress(out) as display:
        display.started(FACTS)
        display.step(StepFacts(1, 1, 0.5, 2.0, 0.25, None))
        assert said(out).splitlines()[-1] == ("epoch 1/2: step 1/4, loss 0.5000, 2.0 patches/s, waited for data 25%")
        clock.s += 30
        display.step(StepFacts(1, 4, 0.25, 2.0, 0.25, None))
        display.line()
        assert said(out).splitlines()[-1].startswith("epoch 1/2: 0:00:40 left, step 4/4, loss 0.2500")
        display.validating(0, 2, 0, 0)
        clock.s += 10
        display.validating(0, 2, 50, 100)
        display.line()
        assert said(out).splitlines()[-1] == "validation: 0:00:30 left, 0 of 2 series, window 50 of 100"
        clock.s += 10
        # The whole run's clock went on in validation, of which there is another one to come.
        display.step(StepFacts(2, 2, 0.25, 2.0, 0.25, None))
        display.line()
        assert said(out).splitlines()[-1].startswith("epoch 2/2: 0:00:20 left, step 2/4")


def test_a_terminal_has_a_bar_and_no_lines():
    out = console(terminal=True)
    with Display("phantom", out, every_s=0.001) as display:
        display.show("1 of 4 series", 0.25)
        time.sleep(0.05)
        display.line()
        display.say("[a line] of its own")
        display.show("2 of 4 series", 0.5)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said(out))
    assert "━" in plain
    assert "2 of 4 series" in plain
    assert "[a line] of its own\n" in plain
    assert "phantom: " not in plain


SCRIPT = """
from aneurysm.cli.progress import Display
with Display("predict") as display:
    display.show("1 of 2 series", 0.5)
    print("the answer")
"""


def test_what_goes_to_a_file_is_not_taken_by_the_bar(tmp_path):
    """Standard error is a terminal, standard output is a file: as in `aneurysm predict ... > found.txt`."""
    ours, theirs = pty.openpty()
    with (tmp_path / "found.txt").open("w") as file:
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            stdout=file,
            stderr=theirs,
            timeout=60,
            check=True,
            env=environment(TERM="xterm"),
        )
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "1 of 2 series" in shown
    assert (tmp_path / "found.txt").read_text() == "the answer\n"
