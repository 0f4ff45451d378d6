"""aneurysm verify: whether a cache is what it says it is."""

from __future__ import annotations

from typing import Annotated

import typer

from aneurysm.cli.exits import Exit
from aneurysm.cli.options import CacheOption, Workers, chosen_workers
from aneurysm.sizes import size_text


def verify(
    cache: CacheOption = "cache",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            help="Folder or URL of the data: also compare labels, lesions and vessel masks with its tables and masks.",
            show_default=False,
        ),
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every chunk, and check the values.")] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write manifest.csv and lesions.csv again if they are wrong.")
    ] = False,
    workers: Workers = None,
) -> None:
    """Check tables, records, metadata, digests and hashes. Exit code 0: sound; 3: faults or differences were found."""
    from aneurysm.precaching.verify import verify as verify_cache

    report = verify_cache(cache, data=data, deep=deep, workers=chosen_workers(workers), fix=fix)
    for fault in report.faults:
        typer.echo(f"{fault.where}: {fault.what}. {fault.advice}")
    checked = f"{report.volumes} volumes, {size_text(report.bytes_read)}" + (" and every chunk" if deep else "")
    if report.fixed:
        typer.echo(f"{' and '.join(report.fixed)} were not what the volumes and records give, and are written again.")
    if report.faults:
        typer.echo(f"{len(report.faults)} faults in {cache}; checked {checked}.")
        raise typer.Exit(Exit.CACHE)
    typer.echo(f"{cache} is sound; checked {checked}.")
