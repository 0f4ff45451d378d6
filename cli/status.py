"""aneurysm status: how far a run is, on any node, by what its tasks write down."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aneurysm.cli.exits import Exit
from aneurysm.cli.options import CacheOption
from aneurysm.cli.progress import duration_text
from aneurysm.cli.values import number
from aneurysm.errors import NoSpaceError, RunNotFoundError, UsageError
from aneurysm.processes.files import is_disk_full, write_atomically
from aneurysm.sizes import size_text

if TYPE_CHECKING:
    from aneurysm.precaching.status import RunStatus, RunWatch

_MOST_ROWS: Final = 10
_WIDTH: Final = 160
"""Of a table that goes into a file or a pipe."""


def status(
    cache: CacheOption = "cache",
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="Name of the run.", show_default="the newest one")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until the run is over.")] = False,
    every_s: Annotated[
        float, typer.Option("--every-s", metavar="S", parser=number(0, above=True), help="Seconds between two looks.")
    ] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; with --watch, an object on each line.")] = False,
    metrics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write metrics for Prometheus, as text.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a page about the run, HTML; once, in the end.", show_default=False
        ),
    ] = None,
) -> None:
    """
    Show how far a run of `aneurysm precache` is, all tasks of it.

    Exit code 0: all cached; 8: done, and some are not cached; 9: not finished.
    """
    from aneurysm.precaching.status import status_facts

    # On a pipe, rich would fold at 80 columns, and cut what a script looks for.
    console = Console() if Console().is_terminal else Console(width=_WIDTH)
    live = Live(console=console, auto_refresh=False) if watch and console.is_terminal and not as_json else None
    try:
        watched = _open(cache, run, every_s if watch else None)
        with live or nullcontext():
            while True:
                now = watched.look()
                if metrics is not None:
                    _write_metrics(metrics, now)
                if as_json:
                    typer.echo(json.dumps(status_facts(now), indent=None if watch else 2))
                elif live is not None:
                    live.update(_page(now), refresh=True)
                elif watch:
                    typer.echo(_line(now))
                else:
                    console.print(_page(now))
                if not watch or now.is_over:
                    break
                time.sleep(every_s)
    except KeyboardInterrupt:
        if not watch:
            raise
        raise typer.Exit(Exit.OK) from None
    if report is not None:
        from aneurysm.report.rebuild_page import write_rebuild_page

        write_rebuild_page(report, now, watched.tally)
    raise typer.Exit(_code(now))


def _open(cache: str, run: str | None, every_s: float | None) -> RunWatch:
    """Return the ledgers of a run; with ``every_s``, wait for one that has not begun: its tasks may be in a queue."""
    from aneurysm.precaching.status import RunWatch

    is_waiting = False
    while True:
        try:
            return RunWatch(cache, run)
        except RunNotFoundError as error:
            if every_s is None:
                raise
            if not is_waiting:
                typer.echo(f"aneurysm: {error}. Waiting for it", err=True)
            is_waiting = True
            time.sleep(every_s)


def _code(now: RunStatus) -> Exit:
    if not now.is_complete:
        return Exit.INCOMPLETE
    return Exit.SOME_FAILED if now.not_cached else Exit.OK


def _write_metrics(path: Path, now: RunStatus) -> None:
    from aneurysm.precaching.exposition import exposition

    try:
        write_atomically(path, exposition(now))
    except OSError as error:
        if is_disk_full(error):
            raise NoSpaceError(f"the disk of {path} is full") from error
        raise UsageError(f"--metrics {path} can't be written: {error.strerror or error}") from error


def _page(now: RunStatus) -> RenderableType:
    """Return all that a person wants to know, the most important first."""
    parts: list[RenderableType] = [Text(line) for line in _head(now)]
    parts += [Text(line, style="yellow") for line in _warnings(now)]
    if now.reasons:
        table = _table("not cached because of", "series")
        for reason, n in list(now.reasons.items())[:_MOST_ROWS]:
            table.add_row(reason, f"{n:,}")
        parts += [Text(), table]
    if now.in_hand:
        table = _table("in hand", "for", "expected", "host", "job", "task", left=(0, 3, 4, 5))
        for series in now.in_hand[:_MOST_ROWS]:
            expected = duration_text(series.expected_s) if series.expected_s else "-"
            took = f"{duration_text(series.for_s)}{' !' if series.is_straggler else '  '}"
            table.add_row(series.uid, took, expected, series.host, series.job or "-", series.task or "-")
        parts += [Text(), table]
        if (more := len(now.in_hand) - _MOST_ROWS) > 0:
            parts.append(Text(f" and {more:,} more"))
    if len(now.tasks) > 1 or now.tasks_total > 1:
        parts += [Text(), *_tasks(now)]
    return Group(*parts)


def _head(now: RunStatus) -> list[str]:
    started = datetime.fromtimestamp(now.started, UTC)
    others = f", {now.skipped:,} by other runs" if now.skipped else ""
    counts = (
        f"{now.cached:,} cached, {now.rejected:,} rejected, {now.failed:,} failed{others}, {now.done_before:,} done"
    )
    return [
        f"run {now.run}, since {started:%Y-%m-%d %H:%M:%S} UTC: {_progress(now)}",
        f"{counts} before; {size_text(now.bytes_in)} read, {size_text(now.bytes_out)} written",
    ]


def _progress(now: RunStatus) -> str:
    if now.total is None:
        return "looking for series"
    share = f" ({100 * now.done / now.total:.1f} %)" if now.total else ""
    text = f"{now.done:,} of {now.total:,} series{share}"
    rate = f"{now.series_per_min:.1f} series/min, {size_text(int(now.bytes_per_s))}/s"
    if now.is_complete:
        return f"{text}, complete after {duration_text(now.elapsed_s)}"
    if now.is_over:
        return f"{text}, ended before all were done: the same command again does the rest"
    if not now.is_active:
        waiting = now.tasks_total - sum(not t.is_worker for t in now.tasks)
        return f"{text}, nobody is at work; {waiting:,} {'task has' if waiting == 1 else 'tasks have'} not begun"
    left = f", {duration_text(now.left_s)} left" if now.left_s else ""
    return f"{text}, {rate}{left}"


def _line(now: RunStatus) -> str:
    """Return the state in one line, for a log."""
    at = datetime.fromtimestamp(now.time, UTC)
    parts = [f"{at:%Y-%m-%dT%H:%M:%SZ} {now.run}: {_progress(now)}"]
    parts += [f"{len(now.in_hand):,} in hand"] if now.in_hand else []
    parts += [f"{now.not_cached:,} not cached"] if now.not_cached else []
    return ", ".join([*parts, *_warnings(now)])


def _warnings(now: RunStatus) -> list[str]:
    slow = [s for s in now.in_hand if s.is_straggler]
    named = ", ".join(sorted({s.host for s in slow})[:3])
    states = Counter(t.state for t in now.tasks)
    lines = [f"series that take more than 3 times as long as expected: {len(slow):,}, on {named}"] if slow else []
    troubled = [f"{n:,} {state}" for state in ("silent", "dead", "stopped") if (n := states[state])]
    lost = f", which had {now.lost:,} series in hand" if now.lost else ""
    lines += [f"tasks in trouble: {', '.join(troubled)}{lost}"] if troubled else []
    lines += [str(odd) for odd in now.odd_hosts[:_MOST_ROWS]]
    if len(now.versions) > 1:
        lines.append(f"several versions are at work: {', '.join(f'{v} ({n})' for v, n in now.versions.items())}")
    if now.damaged:
        lines.append(f"lines of ledgers that are damaged, and were passed over: {now.damaged:,}")
    return lines


def _tasks(now: RunStatus) -> list[RenderableType]:
    states = Counter[str](t.state for t in now.tasks if not t.is_worker)
    if waiting := now.tasks_total - sum(states.values()):
        states["not begun"] = waiting
    workers = sum(t.is_worker for t in now.tasks)
    text = ", ".join(f"{n:,} {state}" for state, n in states.items())
    parts: list[RenderableType] = [Text(f"tasks: {text}" + (f"; {workers:,} workers" if workers else ""))]
    table = _table("task", "state", "host", "job", "done", "failed", "in hand", "last line", left=(0, 1, 2, 3))
    shown = sorted(now.tasks, key=lambda t: (_ORDER.index(t.state), -t.last_s))[:_MOST_ROWS]
    for task in sorted(shown, key=now.tasks.index):
        name = "worker" if task.is_worker else task.task or "all"
        state = task.how if task.state == "stopped" else task.state
        counts = (f"{n:,}" for n in (task.done, task.failed, task.in_hand))
        table.add_row(name, state, task.host, task.job or "-", *counts, f"{duration_text(task.last_s)} ago")
    parts.append(table)
    if (more := len(now.tasks) - len(shown)) > 0:
        parts.append(Text(f" and {more:,} more"))
    return parts


_ORDER: Final = ("dead", "silent", "stopped", "running", "planning", "ended")


def _table(*columns: str, left: tuple[int, ...] = (0,)) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in left else "right", no_wrap=i == 0)
    return table
