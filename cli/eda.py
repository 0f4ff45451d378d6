"""aneurysm eda: tables and headers -> a page about the data, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aneurysm.cli.exits import unwind_on_sigterm
from aneurysm.cli.options import DataOption, MemoryMb, TimeoutS, Workers, chosen_workers
from aneurysm.cli.progress import Display, series_share, series_text
from aneurysm.cli.values import whole
from aneurysm.errors import UsageError


def eda(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the page, eda.html.")],
    data: DataOption = "data",
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL", help="A cache of the data: shows what its runs rejected, too.", show_default=False
        ),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Cache spec by which it is said what would be rejected.",
            show_default="the cache's, or rsna-1mm",
        ),
    ] = None,
    cases: Annotated[
        int, typer.Option(metavar="N", parser=whole(0, 100), help="Series of each modality of which a slice is shown.")
    ] = 4,
    workers: Workers = None,
    timeout_s: TimeoutS = None,
    memory_mb: MemoryMb = None,
) -> None:
    """
    Write one page about the data before anything is built or trained, from tables and headers.

    Labels, ages, sites and lesions, geometry and encoding, sample slices, what a run would reject and why; no patient's
    ID, and no age and sex of fewer than five patients.
    """
    from aneurysm.report.eda import explore
    from aneurysm.report.eda_page import write_eda_page

    if cache is not None and spec is not None:
        raise UsageError("--spec goes without --cache: a cache has a spec of its own")
    unwind_on_sigterm()
    with Display("eda") as display:
        display.show("looking for series")
        exploration = explore(
            data,
            cache=cache,
            spec=spec or "rsna-1mm",
            workers=chosen_workers(workers),
            timeout_s=timeout_s,
            memory_mb=memory_mb,
            cases=cases,
            on_progress=lambda done, total: display.show(series_text(done, total), series_share(done, total)),
        )
    page = write_eda_page(exploration, out)
    total, fit = len(exploration.series), len(exploration.fit)
    patients = f"{exploration.patients} patient{'s' if exploration.patients != 1 else ''}"
    typer.echo(f"{total} series of {patients}; by their headers, {total - fit} would be rejected.")
    typer.echo(f"Read {page}.")
