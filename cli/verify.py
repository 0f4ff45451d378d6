"""aneurysm verify: whether a cache is what it says it is."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.exits import Exit
from cli.options import CachePlace, Workers, chosen_workers


def verify(
    cache: CachePlace = "cache",
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every chunk, and check the values.")] = False,
    workers: Workers = None,
) -> None:
    """Check manifest, metadata, digests and content hashes. Exit code 0: sound; 3: faults were found."""
    from aneurysm.cache.verify import verify_cache

    report = verify_cache(cache, deep=deep, workers=chosen_workers(workers))
    for fault in report.faults:
        typer.echo(f"{fault.where}: {fault.what}. {fault.advice}")
    checked = f"{report.volumes} volumes, {report.bytes_read / 1e6:,.0f} MB" + (" and every chunk" if deep else "")
    if report.faults:
        typer.echo(f"{len(report.faults)} faults in {cache}; checked {checked}.")
        raise typer.Exit(Exit.CACHE)
    typer.echo(f"{cache} is sound; checked {checked}.")
