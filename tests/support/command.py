"""The command line: run to its end, in a process of its own or in this one, or started to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import (
    chdir,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from tests.support.run_data import ROOT

PATIENT_KEY = "the same in every cache, else no two could have the same bytes"


@dataclass(frozen=True)
class Ran:
    """What a finished command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams, for messages that may stand on either."""
        return self.out + self.err


def environment(*, first_path: Path | None = None, **extra: str) -> dict[str, str]:
    """The environment of a child: this checkout importable, wide lines, no folders preset.

    A ``sitecustomize.py`` in `first_path` runs at the start of every Python process of the child's family.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("ANEURYSM_DATA", "ANEURYSM_CACHE")}
    env["PYTHONPATH"] = os.pathsep.join(str(p) for p in (first_path, ROOT) if p is not None)
    env["PYTHONUNBUFFERED"] = "1"
    env["ANEURYSM_PATIENT_KEY"] = PATIENT_KEY
    env["COLUMNS"] = "300"  # so that no message is wrapped
    return env | extra


def command(*args: object) -> list[str]:
    """The command line, started with this interpreter."""
    return [sys.executable, "-m", "aneurysm", *map(str, args)]


def run_cli(*args: object, timeout_s: float = 120, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ran:
    """Run a command to its end; kill its whole process group when it takes too long."""
    process = start_cli(*args, cwd=cwd, env=env)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_group(process)
        out, err = process.communicate()
        raise AssertionError(f"no end after {timeout_s} s: {args}\n{out[-3000:]}\n{err[-3000:]}") from None
    return Ran(process.returncode, out, err)


def call_cli(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ran:
    """Run a command to its end in this process: the second that a new one takes to import everything is saved.

    An exception that would show as a traceback comes out of here as it is.
    """
    from aneurysm.cli.main import main

    out, err = StringIO(), StringIO()
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.dict(os.environ, env or environment(), clear=True),
            mock.patch.object(sys, "argv", ["aneurysm", *map(str, args)]),
            chdir(cwd or Path.cwd()),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        signal.signal(signal.SIGTERM, terminated)
    return Ran(code, out.getvalue(), err.getvalue())


def call_in_process(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Ran:
    """Do as `call_cli`, and do in this process what the command leaves to others, too: their start takes a second.

    Limits don't hold then, and what crashes takes the tests along. Processes for several devices are started.
    """
    from aneurysm.processes.children import InProcess

    lock = threading.Lock()

    class OneAtATime(InProcess):
        """Readers need not be safe for threads, each of which has a process of its own otherwise."""

        def run(self, *args: Any, **options: Any) -> Any:
            with lock:
                return super().run(*args, **options)

    with (
        mock.patch("aneurysm.precaching.run.runner", return_value=nullcontext(OneAtATime())),
        mock.patch("aneurysm.precaching.tasks.runner", return_value=nullcontext(OneAtATime())),
        mock.patch("aneurysm.processes.children.runner", return_value=nullcontext(OneAtATime())),
        mock.patch("aneurysm.processes.map_batches.runner", return_value=nullcontext(OneAtATime())),
        mock.patch("aneurysm.inference.read_series.Children", OneAtATime),
    ):
        return call_cli(*args, cwd=cwd, env=env)


def start_cli(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command in a session, and so a process group, of its own; `end_all` makes sure that it ends."""
    process = subprocess.Popen(
        command(*args),
        cwd=cwd or ROOT,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_let_sigint_through,
    )
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []


def end_all() -> None:
    """Kill whatever `start_cli` started and a failed test left running."""
    while _started:
        process = _started.pop()
        kill_group(process)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _let_sigint_through() -> None:
    """A test run in the background of a shell inherits SIGINT ignored, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the command and to everything it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def group_members(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The living processes of the command's group."""
    found = []
    for other in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
    return found
