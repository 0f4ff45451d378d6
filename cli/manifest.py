"""aneurysm manifest: what is on disk -> the tables, and what is missing."""

from __future__ import annotations

from typing import Annotated

import typer

from aneurysm.cli.exits import Exit
from aneurysm.cli.options import CacheOption, Workers, chosen_workers
from aneurysm.cli.result import JsonOption, Result
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
    as_json: JsonOption = False,
) -> None:
    """
    Write manifest.csv and lesions.csv again, after the last shard of several.

    Exit code 0: all cached; 8: some rejected or failed; 9: some are missing, which can be known only with --data; 3:
    there are volumes of another spec or recipe than the cache's.
    """
    from aneurysm.precaching.finish import merge

    result = Result("manifest", as_json=as_json)
    merged = merge(cache, data, workers=chosen_workers(workers))
    result.say(f"{cache} holds {merged.cached} volumes; {merged.not_cached} series are recorded as not cached.")
    if data is None:
        result.say("Whether others are missing can't be said without --data.")
    for uid in merged.missing[:_NAMED]:
        result.say(f"missing: {uid}")
    if len(merged.missing) > _NAMED:
        result.say(f"and {len(merged.missing) - _NAMED} more")
    if merged.missing:
        result.say(
            f"{len(merged.missing)} series of {data} are missing: nobody built them yet. The same `aneurysm precache` "
            "again does only those."
        )
    if merged.not_cached:
        result.say(f"{join_url(cache, 'manifest.csv')} says why {merged.not_cached} are not cached.")
    for uid, digest in list(merged.strange.items())[:_NAMED]:
        typer.echo(f"aneurysm: volume {uid} is of digest {digest}, and the cache of {merged.digest}", err=True)
    if merged.strange:
        typer.echo(
            f"aneurysm: {len(merged.strange)} volumes are of another spec or recipe, so nothing trains on this cache. "
            "Build them again: aneurysm precache --overwrite --series UID...",
            err=True,
        )
    code = Exit.OK
    if merged.strange:
        code = Exit.CACHE
    elif merged.missing:
        code = Exit.INCOMPLETE
    elif merged.not_cached:
        code = Exit.SOME_FAILED
    result.end(
        code,
        {
            "cache": cache,
            "cached": merged.cached,
            "not_cached": merged.not_cached,
            "missing": None if data is None else merged.missing,
            "strange": merged.strange,
        },
        exit_zero=exit_zero,
    )
