"""aneurysm doctor: whether a run would work here, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from aneurysm.cli.exits import Exit
from aneurysm.cli.options import CacheOption, DataOption, MemoryMb, SpecOption, Workers, chosen_workers
from aneurysm.cli.result import JsonOption, Result

if TYPE_CHECKING:
    from aneurysm.precaching.finding import Finding

_COLOURS: Final = {"ok": "green", "warning": "yellow", "error": "bold red", "unknown": "cyan"}


def doctor(
    data: DataOption = "data",
    cache: CacheOption = "cache",
    spec: SpecOption = "rsna-1mm",
    workers: Workers = None,
    memory_mb: MemoryMb = None,
    as_json: JsonOption = False,
) -> None:
    """
    Check, before a run, what it will need: decoders, locks, room, memory, CPUs, clocks, stores.

    Takes the options of the run. Exit code 0: nothing keeps it from working; 2: something does.
    """
    from aneurysm.precaching.doctor import examine
    from aneurysm.precaching.finding import State

    findings = examine(data, cache, spec=spec, workers=chosen_workers(workers), memory_mb=memory_mb)
    result = Result("doctor", as_json=as_json)
    if not as_json:
        _print(findings)
    errors = sum(finding.state == State.ERROR for finding in findings)
    if errors:
        result.say(f"{errors} of {len(findings)} checks found an error.")
    facts = {"cache": cache, "findings": [asdict(finding) for finding in findings]}
    result.end(Exit.USAGE if errors else Exit.OK, facts)


def _print(findings: Sequence[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # On a pipe, as in a job's log, rich would fold at 80 columns.
    console = Console() if Console().is_terminal else Console(width=160)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("check", "state", "found", "what to do"):
        table.add_column(name, overflow="fold", no_wrap=name in ("check", "state"))
    for finding in findings:
        state = Text(finding.state, style=_COLOURS[finding.state])
        table.add_row(finding.check, state, Text(finding.found), Text(finding.advice))
    console.print(table)
