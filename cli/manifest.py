"""aneurysm manifest: what is on disk -> the tables, and what is missing."""

from __future__ import annotations

from typing import Annotated

import typer

from aneurysm.cli.exits import Exit
from aneurysm.cli.options import CacheOption, Workers, chosen_workers
from aneurysm.remote.url import join_url

_NAMED = 20


def manifest(
    cache: CacheOption = "cache",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            envvar="ANEURYSM_DATA",
            help="Folder or URL of the data: says what is missing.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = None,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit code 0 also where 8 would say that some are rejected or failed.")
    ] = False,
) -> None:
    """
    Write manifest.csv and lesions.csv again, after the last shard of several.

    Exit code 0: all cached; 8: some rejected or failed; 9: some are missing, which can be known only with --data; 3:
    there are volumes of another spec or recipe than the cache's.
    """
    from aneurysm.precaching.finish import merge

    merged = merge(cache, data, workers=chosen_workers(workers))
    typer.echo(f"{cache} holds {merged.cached} volumes; {merged.not_cached} series are recorded as not cached.")
    if data is None:
        typer.echo("Whether others are missing can't be said without --data.")
    for uid in merged.missing[:_NAMED]:
        typer.echo(f"missing: {uid}")
    if len(merged.missing) > _NAMED:
        typer.echo(f"and {len(merged.missing) - _NAMED} more")
    if merged.missing:
        typer.echo(
            f"{len(merged.missing)} series of {data} are missing: nobody built them yet. The same `aneurysm precache` "
            "again does only those."
        )
    if merged.not_cached:
        typer.echo(f"{join_url(cache, 'manifest.csv')} says why {merged.not_cached} are not cached.")
    for uid, digest in list(merged.strange.items())[:_NAMED]:
        typer.echo(f"aneurysm: volume {uid} is of digest {digest}, and the cache of {merged.digest}", err=True)
    if merged.strange:
        typer.echo(
            f"aneurysm: {len(merged.strange)} volumes are of another spec or recipe, so nothing trains on this cache. "
            "Build them again: aneurysm precache --overwrite --series UID...",
            err=True,
        )
        raise typer.Exit(Exit.CACHE)
    if merged.missing:
        raise typer.Exit(Exit.INCOMPLETE)
    if merged.not_cached:
        raise typer.Exit(Exit.OK if exit_zero else Exit.SOME_FAILED)
