"""A Slurm of our own: controller and nodes as processes on the loopback, gone after the test."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.users import LAY_OPEN, namespace

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo")
_CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/controller.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/controller.log
SlurmdLogFile={root}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=6
KillWait=30
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=n[1-{n}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2 RealMemory=64000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Say why no Slurm can be started here; nothing if it can."""
    missing = [name for name in PROGRAMS if not _program(name)]
    return f"no {', '.join(missing)} (Debian: slurm-wlm and munge)" if missing else ""


def _program(name: str) -> str:
    # Daemons live where a user's PATH may not reach.
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])) or ""


@dataclass
class Slurm:
    """A running cluster. Commands run with `environment`, in which SLURM_CONF stands."""

    root: Path
    environment: dict[str, str]
    node_prefix: list[str] = field(default_factory=list)
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, *command: object, cwd: Path | None = None, **more: str) -> str:
        """Run a command of Slurm's to its end; return what it printed."""
        arguments = [_program(str(command[0])), *map(str, command[1:])]
        done = subprocess.run(
            arguments, env=self.environment | more, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def start(self, name: str, *arguments: object) -> None:
        """Start a daemon, in the foreground of a process of its own."""
        prefix = self.node_prefix if arguments[0] == "slurmd" else []
        command = [*prefix, _program(str(arguments[0])), *map(str, arguments[1:])]
        log = (self.root / f"{name}.out").open("ab")
        with log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start_node(self, name: str) -> None:
        """Start a node's daemon, for the first time or again."""
        self.start(name, "slurmd", "-D", "-N", name)

    def kill(self, name: str) -> None:
        """SIGKILL to a daemon, and to nothing else: what runs on the node runs on."""
        self.daemons[name].kill()
        self.daemons[name].wait()

    def jobs(self) -> dict[str, str]:
        """Return the state of each job or task that is not done, by its number."""
        lines = self.run("squeue", "--array", "--noheader", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait(self, condition: object, timeout_s: float, what: str) -> None:
        """Wait until ``condition()``, or fail with all that is known."""
        end = time.monotonic() + timeout_s
        while not condition():  # type: ignore[operator]
            if time.monotonic() > end:
                logs = "\n".join(f"== {p.name}\n{p.read_text()[-1500:]}" for p in sorted(self.root.glob("*.log")))
                raise AssertionError(f"{what}: not within {timeout_s} s. {self.jobs()}\n{logs}")
            time.sleep(0.1)

    def processes(self, **variables: str) -> list[psutil.Process]:
        """Return the processes of jobs of this cluster whose environment has these variables."""
        found = []
        wanted = {"SLURM_CONF": self.environment["SLURM_CONF"], **variables}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if wanted.items() <= process.environ().items():
                    found.append(process)
        return found


@contextmanager
def loopback_slurm(environment: dict[str, str], nodes: int = 2, *, several_users: bool = False) -> Iterator[Slurm]:
    """
    Start a cluster of ``nodes`` nodes of two CPUs, whose jobs get ``environment``; end it, whatever happens.

    With ``several_users`` jobs of others than root see this Python, too.
    """
    # Sockets' paths must be short.
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    root.chmod(0o755)  # munge wants it so
    slurm = Slurm(root, environment | {"SLURM_CONF": str(root / "slurm.conf")})
    if several_users:
        (root / "python").mkdir()
        slurm.node_prefix = namespace(f'{LAY_OPEN}shift 3; exec "$@"', str(root / "python"))
    controller = _free_ports(nodes + 1)
    first = controller + 1
    (root / "slurm.conf").write_text(
        _CONFIGURATION.format(
            root=root, user=getpass.getuser(), n=nodes, controller=controller, first=first, last=first + nodes - 1
        )
    )
    for name in ("state", "munge"):
        (root / name).mkdir(mode=0o755)
    key = root / "munge" / "key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    try:
        places = [f"--{what}={root}/munge/{name}" for what, name in _MUNGE_FILES.items()]
        slurm.start("munged", "munged", "--force", "--foreground", *places)
        slurm.start("controller", "slurmctld", "-D")
        for i in range(nodes):
            slurm.start_node(f"n{i + 1}")
        idle = ["sinfo", "--noheader", "--Node", "--format=%T"]

        def ready() -> bool:
            with suppress(AssertionError):
                return slurm.run(*idle).split() == ["idle"] * nodes
            return False

        slurm.wait(ready, 60, "a cluster whose nodes are idle")
        yield slurm
    finally:
        with suppress(AssertionError, subprocess.TimeoutExpired):
            slurm.run("scancel", "--full", "--user", getpass.getuser())
        for name in reversed(slurm.daemons):
            slurm.daemons[name].send_signal(signal.SIGTERM)
        for process in slurm.daemons.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        for left in slurm.processes():
            if left.pid != os.getpid():
                with suppress(psutil.Error):
                    left.kill()
        shutil.rmtree(root, ignore_errors=True)


_MUNGE_FILES = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


def _free_ports(n: int) -> int:
    """Return the first of ``n`` neighbouring ports that are free now."""
    for first in range(21000 + os.getpid() % 20000, 65000 - n):
        with suppress(OSError):
            for port in range(first, first + n):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")
