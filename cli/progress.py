"""Display: how a command shows how far it is. A live bar on a terminal, plain lines where there is none."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from aneurysm.sizes import size_text

if TYPE_CHECKING:  # they load pydicom and zarr, which most commands need not wait for
    from aneurysm.precaching.build_series import Outcome
    from aneurysm.rawdata.folder import Inventory

LINE_EVERY_S: Final = 10.0


class Clock:
    """What is left of some work, by the time that its share so far has taken. A resumed run begins with a share."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._first: float | None = None

    def left(self, share: float | None) -> str:
        """Return the time left, or, while there is nothing to tell it by, the time so far; nothing when all is done."""
        elapsed = time.monotonic() - self.started
        if share is not None and share >= 1:
            return ""
        if share is not None and self._first is None:
            self._first = share
        if share is None or self._first is None or share <= self._first:
            return f"{duration_text(elapsed)} so far" if elapsed >= 1 else ""
        return f"{duration_text(elapsed / (share - self._first) * (1 - share))} left"


class Display:
    """
    Shows on stderr what a command is at: the text of the moment, the share done, and the time left.

    Parameters
    ----------
    name
        What stands before the bar, or at the beginning of a line.
    console
        Of stderr; another one in tests.
    every_s
        Seconds between lines, whether or not there is news.
    """

    def __init__(self, name: str, console: Console | None = None, *, every_s: float | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._every_s = LINE_EVERY_S if every_s is None else every_s
        self._name, self._text, self._share, self._clock = name, "", 0.0, Clock()
        self._shares = False
        self._ended = threading.Event()
        self._bar: Progress | None = None
        self._lines: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, and print no more lines."""
        self._ended.set()
        if self._lines is not None:
            self._lines.join()
            self._lines = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(
        self, text: str, share: float | None = None, *, clock: Clock | None = None, name: str | None = None
    ) -> None:
        """
        Show this from now on; the first call makes the bar appear, or the first line come in `every_s` seconds.

        Parameters
        ----------
        share
            Of the work, 0 to 1; None: not known.
        clock
            Of other work than before.
        name
            Of other work than before.
        """
        self._text, self._share, self._shares = text, share or 0.0, share is not None
        self._clock, self._name = clock or self._clock, name or self._name
        # The first estimate counts from here on, also if nobody looks.
        self._clock.left(share)
        if self._ended.is_set():
            return
        if self.console.is_terminal:
            if self._bar is None:
                self._bar = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=20, table_column=Column(no_wrap=True)),
                    _Moment(self),
                    console=self.console,
                    # It would take what goes to a file or a pipe, and print it here.
                    redirect_stdout=sys.stdout.isatty(),
                )
                self._bar.add_task(self._name)
                self._bar.start()
            for task in self._bar.task_ids:
                total = 1.0 if self._shares else None
                self._bar.update(task, description=self._name, completed=self._share, total=total)
        elif self._lines is None:
            self._lines = threading.Thread(target=self._tell, daemon=True)
            self._lines.start()

    def line(self) -> None:
        """Print the line now, where there is no bar to show it."""
        if not self.console.is_terminal:
            self.say(self._line())

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def moment(self) -> str:
        """Return the time left and the text, as they are now."""
        left = self._clock.left(self._share if self._shares else None)
        return ", ".join(filter(None, (left, self._text)))

    def _line(self) -> str:
        return f"{self._name}: {self.moment()}"

    def _tell(self) -> None:
        while not self._ended.wait(self._every_s):
            self.say(self._line())


class _Moment(ProgressColumn):
    """The time left and the text, cut where the line ends."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def render(self, task: Task) -> Text:  # noqa: ARG002 - there is one
        """Return the text of this moment."""
        return Text(self._display.moment(), no_wrap=True, overflow="ellipsis")


class PrecacheProgress(Display):
    """Tells of a precache run: series, bytes, time left, failures so far."""

    def __init__(self, console: Console | None = None, *, task: str = "") -> None:
        super().__init__("precache", console)
        self._task = task
        self._todo = self._done = self._bad = self._bytes_in = self._bytes_expected = 0
        self._began = Clock()

    def __enter__(self) -> Self:
        self.show("looking for series")
        return self

    def say(self, text: str) -> None:
        """Print a line of its own; in a log, where those of many tasks come together, with its time and origin."""
        super().say(text if self.console.is_terminal else f"{log_prefix(self._task)} {text}")

    def started(self, inventory: Inventory, todo: int, there: int, bytes_in: int) -> None:
        """Say what was found and what is to do."""
        self._todo, self._bytes_expected = todo, bytes_in
        ignored = str(inventory.ignored)
        self.say(
            f"{len(inventory.sources)} series in {inventory.root} ({inventory.layout} layout); {there} done before, "
            f"{todo} to build from about {size_text(bytes_in)}" + (f"; ignored files: {ignored}" if ignored else "")
        )
        self._began = Clock()
        self._update()

    def finished(self, outcome: Outcome) -> None:
        """Count one series; name it if it is not cached."""
        self._done += 1
        self._bytes_in += outcome.bytes_in
        if outcome.status in ("rejected", "failed"):
            self._bad += 1
            self.say(f"{outcome.status} {outcome.uid}: {outcome.reason}: {outcome.detail}")
        self._update()

    def state(self) -> str:
        """Return what a run that ends before its time has done, and what becomes of the rest."""
        if not self._todo:
            return "no series was begun"
        bad = f"{self._bad} not cached, " if self._bad else ""
        return (
            f"{self._done - self._bad} of {self._todo} series were cached, {bad}{self._todo - self._done} are left, of "
            "which those in hand were dropped. What is cached is complete"
        )

    def _update(self) -> None:
        # By bytes: the largest series come first, and would make an estimate by series far too long.
        share = self._bytes_in / self._bytes_expected if self._bytes_expected else self._done / max(self._todo, 1)
        share = 1.0 if self._done >= self._todo else min(share, 0.999)
        bad = f"{self._bad} not cached" if self._bad else ""
        text = ", ".join(filter(None, (f"{self._done} of {self._todo} series", self._rate(), bad)))
        self.show(text, share, clock=self._began)

    def _rate(self) -> str:
        if not self._done:
            return ""
        elapsed = max(time.monotonic() - self._began.started, 1e-3)
        each_s = self._done / elapsed
        series = f"{each_s:.1f} series/s" if each_s >= 1 else f"{60 * each_s:.1f} series/min"
        return f"{series}, {size_text(int(self._bytes_in / elapsed))}/s"


def log_prefix(task: str) -> str:
    """Return when, on which host, in which job and as which ``task`` of a run a line of a log is written."""
    from aneurysm.precaching.run_id import host_name, job_name

    job = job_name(os.environ)
    origin = [f"job={job}" if job else "", f"task={task}" if task else ""]
    return " ".join(filter(None, (f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", host_name(), *origin)))


def series_text(done: int, total: int, window: int = 0, windows: int = 0) -> str:
    """Return how many series are predicted, and how many windows of those in work."""
    return f"{done} of {total} series" + (f", window {window} of {windows}" if windows else "")


def series_share(done: int, total: int, window: int = 0, windows: int = 0) -> float:
    """Return the share of all series that is predicted, those in work in part; see `series_text`."""
    return (done + (window / windows if windows else 0.0)) / max(total, 1)


def duration_text(seconds: float) -> str:
    """Return a time as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
