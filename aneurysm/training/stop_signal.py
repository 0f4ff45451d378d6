"""StopSignal: Ctrl-C and SIGTERM as a wish that the run looks at between two steps."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import torch

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_ONE_S: Final = 1.0
"""Ctrl-C and batch systems signal every process of a job, and what started this one passes the signal on: within so
many seconds that is one and the same."""
_log: Final = logging.getLogger(__name__)


class StopSignal:
    """
    Remembers the first signal; a second one ends the process at once.

    Attributes
    ----------
    wanted
        Number of the signal that came; None if none did.
    """

    def __init__(self) -> None:
        self.wanted: int | None = None
        self._came_at = 0.0

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals within, and give them back to whoever had them."""
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.wanted is not None:
            if number == self.wanted and time.monotonic() - self._came_at < _ONE_S:
                return
            raise SystemExit(128 + number)
        self.wanted, self._came_at = number, time.monotonic()
        _log.warning("%s: stops after this step, and saves. A second one stops at once", signal.Signals(number).name)

    def agree(self, device: torch.device) -> int | None:
        """Return the signal that any rank got; all ranks have to ask. Where there are several this waits for them."""
        if torch.distributed.is_initialized():
            wanted = torch.tensor(self.wanted or 0, device=device)
            torch.distributed.all_reduce(wanted, torch.distributed.ReduceOp.MAX)
            self.wanted = int(wanted) or None
        return self.wanted
