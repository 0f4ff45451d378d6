"""Other users than the one who runs the tests, who must be root: they share a group, and see this Python."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import PATIENT_KEY, Ran, environment
from tests.support.run_data import ROOT

GROUP = 54321

# Python may lie in a folder that root keeps for himself: in a mount namespace of the child's own it is laid open.
LAY_OPEN = """
if [ -n "$1" ]; then
    umask 022; mount --bind "$2" "$3" && mount -t tmpfs -o mode=755 tmpfs "$1" && mkdir -p "$2" \\
        && mount --bind "$3" "$2" || exit 77
fi
"""
_BECOME = (
    LAY_OPEN
    + """
umask $5
user=$4; shift 5
exec setpriv --reuid $user --regid $user --groups GROUP "$@"
""".replace("GROUP", str(GROUP))
)


def namespace(script: str, point: str, *arguments: object) -> list[str]:
    """The command that runs a shell ``script``, which begins with `LAY_OPEN`, in a mount namespace of its own."""
    python = Path(sys.base_prefix).resolve()
    hidden = next((p for p in reversed(python.parents) if not p.stat().st_mode & stat.S_IXOTH), "")
    words = [hidden, python, point, *arguments]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *map(str, words)]


@dataclass(frozen=True)
class User:
    """Somebody who is in the group of his own, and in the shared one."""

    number: int
    umask: int

    def run(self, *command: object, key: str = PATIENT_KEY) -> Ran:
        with tempfile.TemporaryDirectory() as point:
            done = subprocess.run(
                namespace(_BECOME, point, self.number, f"{self.umask:03o}", sys.executable, *command),
                cwd=ROOT,
                env=environment(ANEURYSM_PATIENT_KEY=key, HOME="/nonexistent", PYTHONDONTWRITEBYTECODE="1"),
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
        return Ran(done.returncode, done.stdout, done.stderr)

    def precache(self, data: Path, cache: Path, *more: object, key: str | None = None) -> Ran:
        options = {} if key is None else {"key": key}
        return self.run(
            "-m", "aneurysm", "precache", "--data", data, "--cache", cache, "--workers", 1, *more, **options
        )


@pytest.fixture(scope="session")
def other_users() -> None:
    """Skip where this process can't be somebody else, or others can't run this checkout."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    if not all(map(shutil.which, ("unshare", "setpriv"))):
        pytest.skip("util-linux is not installed")
    ran = User(54001, 0o022).run("-c", "import aneurysm.precaching.run, aneurysm.cli.main")
    if ran.code:
        pytest.skip(f"other users can't run this checkout: {ran.err[-300:]}")


@pytest.fixture
def folder(other_users: None) -> Iterator[Path]:
    """A folder of the group, with the set-group-ID bit, where other users get to."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    try:
        shared = base / "shared"
        shared.mkdir()
        os.chown(shared, 54001, GROUP)
        shared.chmod(0o2775)
        yield shared
    finally:
        shutil.rmtree(base)
