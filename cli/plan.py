"""aneurysm plan: what is missing of a cache -> what each of several tasks is to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aneurysm.cli.exits import unwind_on_sigterm
from aneurysm.cli.options import CacheOption, DataOption, MemoryMb, SpecOption, TimeoutS, Workers, chosen_workers
from aneurysm.cli.progress import Display, duration_text
from aneurysm.cli.values import whole
from aneurysm.sizes import size_text

if TYPE_CHECKING:
    from aneurysm.precaching.plan import PlanDocument

_MOST_PARTS = 100_000


def plan(
    shards: Annotated[
        int, typer.Option(metavar="N", parser=whole(1, _MOST_PARTS), help="Into how many parts to deal it out.")
    ],
    data: DataOption = "data",
    cache: CacheOption = "cache",
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            help="Where to write the plan, which names files of the data.",
            show_default="CACHE/.plan",
        ),
    ] = None,
    spec: SpecOption = "rsna-1mm",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Deal out, too, what was rejected or failed before.")
    ] = False,
    workers: Workers = None,
    timeout_s: TimeoutS = None,
    memory_mb: MemoryMb = None,
) -> None:
    """
    Look through the data once, and deal out what is missing of the cache to tasks that take about as long.

    Each of them is `aneurysm precache --plan`, which need not look again. Corrected labels are brought into the cache
    on the way.
    """
    from aneurysm.precaching.tasks import make_plan

    unwind_on_sigterm()
    with Display("plan") as display:
        display.show("looking for series")
        made, updates = make_plan(
            data,
            cache,
            shards,
            out=out,
            spec=spec,
            retry_failed=retry_failed,
            workers=chosen_workers(workers),
            timeout_s=timeout_s,
            memory_mb=memory_mb,
        )
    for line in _table(made.document):
        typer.echo(line)
    changed = sum(bool(update.changes) for update in updates)
    if changed:
        typer.echo(f"labels of {changed} volumes updated")
    for update in updates:
        if update.problem:
            typer.echo(f"the labels of {update.uid} were not updated: {update.problem}")
    typer.echo(f"plan        {made.folder.name}")
    last = made.count - 1
    typer.echo(
        f"each task   aneurysm precache --plan {made.folder.name} --shard I, from 0 to {last}; in a Slurm array "
        f"--array=0-{last} without --shard"
    )
    typer.echo(f"in the end  aneurysm manifest --data {made.document.data} --cache {made.document.cache}")


def _table(document: PlanDocument) -> list[str]:
    seconds = [part.seconds for part in document.parts]
    mean = document.seconds / len(seconds)
    spread = f", the longest {max(seconds) / mean:.2f} times the mean" if mean > 0 else ""
    return [
        f"series      {document.series} in {document.data} ({document.layout} layout)",
        f"done        {document.done}" + (f", {document.not_cached} of them not cached" if document.not_cached else ""),
        f"missing     {document.missing} of {size_text(document.bytes)}",
        f"expected    {duration_text(document.seconds)} on one core",
        f"parts       {len(seconds)} of {duration_text(mean)} on average{spread}",
    ]
