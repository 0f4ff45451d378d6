"""Exit codes, and SIGTERM as one of them."""

from __future__ import annotations

import os
import signal
from enum import IntEnum
from types import FrameType


class Exit(IntEnum):
    """
    Exit codes. 8 is dcm2niix's for the same thing: finished, some series are not cached.

    9 is not finished, and the same command again resumes: to a pipeline the one is done, the other is to be retried.
    """

    OK = 0
    ERROR = 1
    USAGE = 2
    CACHE = 3
    NO_SPACE = 5
    SOME_FAILED = 8
    INCOMPLETE = 9
    INTERRUPTED = 130
    TERMINATED = 143


def end_at_once_on_sigterm() -> None:
    """Let SIGTERM end the program on the spot: while modules are imported there is nothing to tidy up."""
    signal.signal(signal.SIGTERM, _end)


def unwind_on_sigterm() -> None:
    """
    Let SIGTERM unwind the program as Ctrl-C does, so that a batch system's leaves the same tidy state.

    The first one counts: what comes after it, SIGTERM again or Ctrl-C, would leave the tidying half done.
    """
    signal.signal(signal.SIGTERM, _unwind)


def _end(_signum: int, _frame: FrameType | None) -> None:
    os.write(2, b"aneurysm: terminated\n")
    os._exit(Exit.TERMINATED)


def _unwind(_signum: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(Exit.TERMINATED)
