"""The ledgers of a run -> one page: how fast it went, on which hosts, what failed and what took long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

from aneurysm._version import __version__
from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.precaching.status import RunStatus
from aneurysm.precaching.tally import Tally, Work, Writer
from aneurysm.processes.files import is_disk_full, write_atomically
from aneurysm.report.page_template import page_template
from aneurysm.report.plot_style import BLUE, GREEN, MUTED, ORANGE, Plot, inline_svg, new_figure, styled, svg_text
from aneurysm.report.syntax_names import syntax_name
from aneurysm.sizes import size_text

_HOSTS_SHOWN: Final = 3
"""By colours of their own; all others are one."""
_COLOURS: Final = (BLUE, ORANGE, GREEN, MUTED)
_BINS: Final = 120
_ROWS: Final = 40
"""Of a table, and of the plot of tasks."""


@dataclass(frozen=True)
class _Figure:
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class _Cost:
    """What series of one kind took."""

    name: str
    series: int
    failed: int
    seconds: float
    bytes_in: int
    voxels: int

    @property
    def each_s(self) -> float:
        """Seconds a series."""
        return self.seconds / self.series if self.series else 0.0

    @property
    def megavoxel_s(self) -> float | None:
        """Seconds for a million decoded voxels."""
        return self.seconds / self.voxels * 1e6 if self.voxels else None


def write_rebuild_page(path: Path, status: RunStatus, tally: Tally) -> None:
    """
    Write the page to ``path``; what is there is replaced.

    Raises
    ------
    UsageError
        It can't be written.
    NoSpaceError
        The disk is full.
    """
    try:
        write_atomically(path, render_rebuild(status, tally))
    except OSError as error:
        if is_disk_full(error):
            raise NoSpaceError(f"the disk of {path} is full: there is no report") from error
        raise UsageError(f"the report can't be written to {path}: {error.strerror or error}") from error


def render_rebuild(status: RunStatus, tally: Tally) -> str:
    """Return the page: one file without scripts, that asks for nothing."""
    filters: dict[str, Callable[..., str]] = {
        "bytes": size_text,
        "clock": _clock,
        "duration": _duration,
        "count": _count,
    }
    hosts = sorted((_cost(host, work) for host, work in tally.by_host.items()), key=lambda c: (-c.series, c.name))
    syntaxes = [_cost(syntax_name(uids), work) for uids, work in tally.by_syntax.items()]
    decoded = _cost("all", _sum(list(tally.by_syntax.values())))
    return page_template("rebuild.html", filters).render(
        s=status,
        version=__version__,
        notice="",
        mean_per_min=60 * tally.work.series / max(status.elapsed_s, 1.0),
        mean_bytes_s=int(tally.work.bytes_in / max(status.elapsed_s, 1.0)),
        figures=_figures(tally),
        hosts=hosts[:_ROWS],
        more_hosts=max(0, len(hosts) - _ROWS),
        odd={odd.host for odd in status.odd_hosts},
        syntaxes=sorted(syntaxes, key=lambda c: (-c.seconds, c.name)),
        decoded=decoded,
        slowest=[(t, syntax_name(t.syntax)) for t in sorted(tally.slowest, reverse=True)],
        tasks=status.tasks[:_ROWS],
        more_tasks=max(0, len(status.tasks) - _ROWS),
        states=Counter(t.state for t in status.tasks),
    )


def _figures(tally: Tally) -> list[_Figure]:
    if not tally.by_minute:
        return []
    return [
        _drawn(plot) for plot in (_throughput(tally, of_bytes=False), _throughput(tally, of_bytes=True), _tasks(tally))
    ]


def _drawn(plot: Plot) -> _Figure:
    return _Figure(plot.title, plot.caption, inline_svg(svg_text(plot), plot.name, plot.title))


def _throughput(tally: Tally, *, of_bytes: bool) -> Plot:
    """Draw what was done by the minute, as bars in which the busiest hosts have a colour each."""
    minutes = [minute for _, minute in tally.by_minute]
    first, last = min(minutes), max(minutes)
    # Of a run of days, or of times that no run has, several minutes are one bar.
    width = -(-(last - first + 1) // _BINS)
    n_bins = (last - first) // width + 1
    by_host = Counter[str]()
    for (host, _), work in tally.by_minute.items():
        by_host[host] += work.series
    named = sorted(host for host, _ in by_host.most_common(_HOSTS_SHOWN))
    rows = np.zeros((len(named) + 1, n_bins))
    for (host, minute), work in tally.by_minute.items():
        row = named.index(host) if host in named else len(named)
        rows[row, (minute - first) // width] += (work.bytes_in / 1e6 if of_bytes else work.series) / width
    begins = date2num([datetime.fromtimestamp(60 * (first + width * i), UTC) for i in range(n_bins)])
    what, unit = ("MB", "MB a minute") if of_bytes else ("series", "series a minute")
    others = len(by_host) - len(named)
    with styled():
        figure = new_figure(5.2, 3.0)
        axes = figure.subplots()
        below = np.zeros(n_bins)
        for values, host, colour in zip(rows, [*named, f"{others} others"], _COLOURS, strict=False):
            if values.any():
                axes.bar(begins, values, width / 1440, bottom=below, align="edge", color=colour, label=_short(host))
                below += values
        _time_axis(axes)
        axes.set_ylabel(unit)
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside upper left", ncols=4, fontsize=8)
    caption = (
        f"Of series that were done in each {'minute' if width == 1 else f'{width} minutes'}, by host. Times are UTC."
    )
    return Plot(f"throughput-{what}", f"Throughput: {what}", caption, figure)


def _tasks(tally: Tally) -> Plot:
    """Draw when each process wrote its first and its last line."""
    writers = sorted(tally.writers.values(), key=lambda w: (w.opened, w.name))[:_ROWS]
    with styled():
        figure = new_figure(5.2, max(1.6, 0.6 + 0.16 * len(writers)))
        axes = figure.subplots()
        for row, writer in enumerate(writers):
            begin, end = (datetime.fromtimestamp(t, UTC) for t in (writer.opened, max(writer.last, writer.opened + 1)))
            colour = BLUE if writer.how == "done" or writer.is_worker else ORANGE
            axes.barh(row, date2num(end) - date2num(begin), left=date2num(begin), height=0.7, color=colour)
        axes.set_yticks(range(len(writers)), [_writer_name(w) for w in writers])
        axes.tick_params(axis="y", labelsize=7)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        _time_axis(axes)
    more = len(tally.writers) - len(writers)
    caption = "From the first to the last line of each process; orange: not ended by itself, or not yet ended." + (
        f" {more} more are not shown." if more else ""
    )
    return Plot("tasks", "Tasks", caption, figure)


def _time_axis(axes: Axes) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _writer_name(writer: Writer) -> str:
    return f"{_short(writer.host)} {'worker' if writer.is_worker else writer.task}".strip()


def _short(host: str) -> str:
    """Return a host's name without its domain."""
    return host.split(".")[0][:24]


def _cost(name: str, work: Work) -> _Cost:
    return _Cost(name, work.series, work.failed, work.seconds, work.bytes_in, work.voxels)


def _sum(works: Sequence[Work]) -> Work:
    total = Work()
    for work in works:
        total.add(work)
    return total


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _count(number: float, digits: int = 0) -> str:
    return f"{number:,.{digits}f}"
