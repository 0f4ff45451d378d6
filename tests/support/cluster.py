"""A Dask cluster of processes on this machine, for tests that kill parts of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.support.command import environment, kill_group
from tests.support.run_data import ROOT


class Cluster:
    """A scheduler, and as many workers as are added. Each process leads a group of its own."""

    def __init__(self, folder: Path, *options: object, **settings: str) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self._settings = {"DASK_DISTRIBUTED__WORKER__DAEMON": "True"} | settings
        self._started: list[subprocess.Popen[bytes]] = []
        given = ["--host", "127.0.0.1", "--port", 0, "--scheduler-file", self.file, *(options or ["--no-dashboard"])]
        self.scheduler = self._start("scheduler", *given, env=environment(**self._settings))
        self.address = self._address()

    def add_worker(self, *options: object, first_path: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a worker of one thread, with a nanny that starts it again should it die."""
        given = ["--scheduler-file", self.file, "--nthreads", 1, "--no-dashboard", "--host", "127.0.0.1"]
        given += ["--local-directory", self.folder / "scratch", *options]
        return self._start("worker", *given, env=environment(first_path=first_path, **self._settings))

    def end(self) -> None:
        """Kill what there is."""
        for process in self._started:
            kill_group(process)  # type: ignore[arg-type]
            process.wait()

    def logs(self) -> str:
        """What scheduler and workers said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def _start(self, *args: object, env: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{args[0]}-{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *map(str, args)],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self._started.append(process)
        return process

    def _address(self) -> str:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.scheduler.poll() is None:
            with suppress(FileNotFoundError, ValueError):
                return str(json.loads(self.file.read_text())["address"])
            time.sleep(0.05)
        raise AssertionError(f"no scheduler: {self.logs()}")
