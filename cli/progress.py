"""How a run shows itself: a live bar on a terminal, plain lines where the output goes to a file."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from aneurysm.cache.series import Outcome
from aneurysm.dicom.scan import Inventory

_LINE_EVERY_S: Final = 10.0


class PrecacheProgress:
    """Tells of a precache run on stderr: series/s, MB/s, time left, failures so far."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._todo = self._done = self._bad = self._bytes_in = self._bytes_expected = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bar:
            self._bar.stop()

    def started(self, inventory: Inventory, todo: int, there: int, bytes_in: int) -> None:
        """Say what was found and what is to do."""
        self._todo, self._bytes_expected = todo, bytes_in
        self._started = time.monotonic()
        ignored = str(inventory.ignored)
        self._print(
            f"{len(inventory.sources)} series in {inventory.root} ({inventory.layout} layout); {there} done before, "
            f"{todo} to build from about {bytes_in / 1e6:,.0f} MB" + (f"; ignored files: {ignored}" if ignored else "")
        )
        if self._console.is_terminal and todo:
            self._bar = Progress(
                TextColumn("precache"),
                BarColumn(),
                TextColumn("{task.fields[count]} series"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[bad]}"),
                console=self._console,
            )
            # The bar runs by bytes: the largest series come first, and would make an estimate by series far too long.
            self._task = self._bar.add_task("precache", total=bytes_in or 1, count=f"0/{todo}", rate="", bad="")
            self._bar.start()
        elif todo:
            threading.Thread(target=self._tell, daemon=True).start()

    def finished(self, outcome: Outcome) -> None:
        """Count one series; name it if it is not cached."""
        self._done += 1
        self._bytes_in += outcome.bytes_in
        if outcome.status in ("rejected", "failed"):
            self._bad += 1
            self._print(f"{outcome.status} {outcome.uid}: {outcome.reason}: {outcome.detail}")
        if self._bar and self._task is not None:
            bad = f"{self._bad} not cached" if self._bad else ""
            done = self._bytes_expected if self._done == self._todo else self._bytes_in
            count = f"{self._done}/{self._todo}"
            self._bar.update(self._task, completed=done, count=count, rate=self._rate(), bad=bad)

    def _tell(self) -> None:
        while not self._ended.wait(_LINE_EVERY_S):
            self._print(f"{self._done} of {self._todo} series, {self._rate()}, {self._left()}, {self._bad} not cached")

    def _rate(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-3)
        return f"{self._done / elapsed:.1f} series/s, {self._bytes_in / 1e6 / elapsed:.0f} MB/s"

    def _left(self) -> str:
        elapsed = time.monotonic() - self._started
        share = self._bytes_in / self._bytes_expected if self._bytes_expected else self._done / max(self._todo, 1)
        return f"{elapsed / share * (1 - share):.0f} s left" if 0 < share <= 1 else "almost done"

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
