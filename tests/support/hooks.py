"""A fault for the processes of a run: code that runs there whenever a file of one series is opened."""

from __future__ import annotations

from pathlib import Path

_HOOK = """
import ctypes, errno, os, signal, sys, time

held = []

def misbehave(event, args):
    # Only where series are built, or predicted: the same processes look through the data before.
    at_work = "aneurysm.precaching.build_series" in sys.modules or "aneurysm.inference.read_series" in sys.modules
    if event == "open" and at_work and isinstance(args[0], (str, bytes, os.PathLike)):
        name = os.fsdecode(args[0])
        if "/{uid}/" in name and name.endswith(".dcm"):
            {fault}

if any("aneurysm.processes.child_main" in given for given in sys.orig_argv):
    sys.addaudithook(misbehave)
"""

KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
SEGMENTATION_FAULT = "ctypes.string_at(0)"
HANGS = "time.sleep(3600)"
HUGE = "held.append(bytearray(10**12))"
GROWS = "[held.append(b'x' * 2**24) or time.sleep(0.02) for _ in range(400)]"
KILLS_ITS_PARENT = "os.kill(os.getppid(), signal.SIGKILL); time.sleep(3600)"
OTHER_FILES_VANISH = "[os.remove(p.path) for p in os.scandir(os.path.dirname(name)) if p.path != name]"


def write_hook(folder: Path, uid: str, fault: str) -> Path:
    """Return a folder that `environment(first_path=...)` takes: building series ``uid`` comes to ``fault``."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_HOOK.replace("{uid}", uid).replace("{fault}", fault))
    return folder


_UNWRITABLE = """
import errno, os, sys

def refuse(event, args):
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        name, flags = os.fsdecode(args[0]), args[2]
        if name.startswith("{cache}/") and flags & (os.O_WRONLY | os.O_RDWR):
            if len(os.listdir("{cache}/volumes") if os.path.isdir("{cache}/volumes") else []) >= 2:
                raise OSError(errno.{error}, os.strerror(errno.{error}), name)

sys.addaudithook(refuse)
"""


def write_unwritable(folder: Path, cache: Path, error: str) -> Path:
    """Likewise: from the second volume on, no file in ``cache`` can be written, for ``error`` (ENOSPC...)."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_UNWRITABLE.replace("{cache}", str(cache)).replace("{error}", error))
    return folder
