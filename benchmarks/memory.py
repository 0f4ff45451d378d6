"""The memory of a process and its workers."""

from __future__ import annotations

import threading


class MemoryWatch:
    """Watches the memory of this process and its children; pages that they share count by their share (PSS)."""

    def __init__(self) -> None:
        import psutil

        self._process, self._peak, self._ended = psutil.Process(), 0.0, threading.Event()
        self._errors = (psutil.NoSuchProcess, psutil.AccessDenied)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            total = 0
            for process in [self._process, *self._process.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except self._errors:
                    continue
            self._peak = max(self._peak, total / 1e6)

    def stop(self) -> float:
        """Return the peak, in 10^6 bytes."""
        self._ended.set()
        self._thread.join()
        return self._peak
