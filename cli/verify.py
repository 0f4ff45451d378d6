"""aneurysm verify: whether a cache is what it says it is."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.exits import Exit


def verify(
    cache: Annotated[str, typer.Option(envvar="ANEURYSM_CACHE", help="Folder or URL of the cache.")] = "cache",
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every chunk, and check the values.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; as many as CPUs may be used if not given.", show_default=False)
    ] = None,
) -> None:
    """Check manifest, metadata, digests and content hashes. Exit code 0: sound; 3: faults were found."""
    from aneurysm.cache.build import usable_cpus
    from aneurysm.cache.verify import verify_cache

    report = verify_cache(cache, deep=deep, workers=usable_cpus() if workers is None else workers)
    for fault in report.faults:
        typer.echo(f"{fault.where}: {fault.what}. {fault.advice}")
    checked = f"{report.volumes} volumes, {report.bytes_read / 1e6:,.0f} MB" + (" and every chunk" if deep else "")
    if report.faults:
        typer.echo(f"{len(report.faults)} faults in {cache}; checked {checked}.")
        raise typer.Exit(Exit.CACHE)
    typer.echo(f"{cache} is sound; checked {checked}.")
