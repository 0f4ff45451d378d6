"""The names of a run and of who works at it, for ledgers and logs: one run is all tasks of an array."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from aneurysm.errors import UsageError

_VARIABLES: Final = ("ANEURYSM_RUN", "SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID")
"""The first that is set counts: all tasks of a Slurm array have a SLURM_JOB_ID of their own."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def given_run_id(environ: Mapping[str, str]) -> str | None:
    """
    Return the name of the run that this process is a task of, by its environment; None if that has none.

    Raises
    ------
    UsageError
        It can't be the name of a folder.
    """
    for variable in _VARIABLES:
        if name := environ.get(variable, "").strip():
            return checked_run_id(name, variable)
    return None


def run_id(environ: Mapping[str, str]) -> str:
    """Return the name of the run that this process is a task of, or else a new one. Raises as `given_run_id`."""
    return given_run_id(environ) or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def checked_run_id(name: str, origin: str) -> str:
    """Return ``name`` if it can be that of a run, whose folder is called so; ``origin`` says who gave it."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{origin} is {name[:80]!r}: the name of a run has at most 64 letters, digits, dots, hyphens and "
            "underscores, and begins with a letter or digit"
        )
    return name


def host_name() -> str:
    """Return the name of this machine, in letters that may stand in the name of a file."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64] or "node"


def job_name(environ: Mapping[str, str]) -> str:
    """Return the batch system's name of the job that this process is a part of, as its commands want it; or ""."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID", ""), environ.get("SLURM_ARRAY_TASK_ID", "")
    name = f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID", "")
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:64]
