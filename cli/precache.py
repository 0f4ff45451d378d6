"""aneurysm precache: a folder of DICOM series -> a cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aneurysm.cli.exits import Exit, unwind_on_sigterm
from aneurysm.cli.options import CacheOption, DataOption, MemoryMb, SpecOption, TimeoutS, Workers, chosen_workers
from aneurysm.cli.result import JsonOption, Result
from aneurysm.cli.values import whole
from aneurysm.remote.url import join_url

if TYPE_CHECKING:
    from aneurysm.precaching.run import RunSummary


def precache(
    data: DataOption = "data",
    cache: CacheOption = "cache",
    spec: SpecOption = "rsna-1mm",
    workers: Workers = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", parser=whole(1), help="Build at most N series.", show_default="all"),
    ] = None,
    series: Annotated[
        list[str] | None, typer.Option(metavar="UID...", help="Only these series.", show_default="all")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what was rejected or failed before.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Build series again that are there.")] = False,
    timeout_s: TimeoutS = None,
    memory_mb: MemoryMb = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Build on the Dask cluster of this scheduler.", show_default=False),
    ] = None,
    scheduler_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same, by the scheduler's file.", show_default=False)
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only the I-th of N parts, from 0, of about the same size; /N, or nothing, in a Slurm array or an "
            "indexed Kubernetes job. `aneurysm manifest` ends it.",
            show_default=False,
        ),
    ] = None,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit code 0 also where 8 would say that some are rejected or failed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """
    Build what is missing of the cache.

    Exit code 0: all cached; 8: some rejected or failed (see manifest.csv); 9: not finished, the same command resumes.
    """
    from aneurysm.cli.progress import PrecacheProgress
    from aneurysm.precaching import run as build
    from aneurysm.precaching.partition import find_shard

    part = find_shard(shard, os.environ)
    unwind_on_sigterm()
    result = Result("precache", as_json=as_json)
    progress = PrecacheProgress(task=str(part or ""))
    try:
        with progress:
            if part:
                progress.say(f"shard {part} ({part.origin})")
            summary = build.precache(
                data,
                cache,
                spec=spec,
                workers=chosen_workers(workers),
                limit=limit,
                series=series or (),
                retry_failed=retry_failed,
                overwrite=overwrite,
                shard=part,
                timeout_s=timeout_s,
                memory_mb=memory_mb,
                dask=dask,
                scheduler_file=scheduler_file,
                progress=progress,
            )
    except (KeyboardInterrupt, SystemExit) as error:
        ended = "terminated" if isinstance(error, SystemExit) else "interrupted"
        progress.say(f"aneurysm: {ended}: {progress.state()}. The same command resumes.")
        raise
    bad = summary.total_not_cached
    result.say(
        f"{summary.cached} cached, {summary.rejected} rejected, {summary.failed} failed, {summary.skipped} done "
        f"before, in {summary.seconds:.1f} s. "
        + (f"Shard {part} has" if part else f"{cache} holds")
        + f" {summary.total_cached} volumes."
    )
    for line in _annotation_lines(summary, data):
        result.say(line)
    if part:
        result.say(f"When all shards are done: aneurysm manifest --data {data} --cache {cache}")
    if summary.busy:
        result.say(f"{summary.busy} series are in the hands of another run: when it is done, run this again.")
    if bad:
        where = (
            f"{join_url(cache, 'rejected')} says why of those that can't be"
            if part
            else join_url(cache, "manifest.csv")
        )
        result.say(f"{bad} series are not cached; {where}" + ("." if part else " says why."))
    code = Exit.OK
    if summary.busy:
        code = Exit.INCOMPLETE
    # Of what was built again and failed the volume is kept: it does not count among those that are not cached.
    elif bad or summary.rejected or summary.failed or summary.not_updated:
        code = Exit.SOME_FAILED
    result.end(code, {"cache": cache, "shard": str(part) if part else None} | vars(summary), exit_zero=exit_zero)


def _annotation_lines(summary: RunSummary, data: str) -> Iterator[str]:
    from aneurysm.precaching.relabel import ANNOTATION_KINDS

    if not summary.has_labels:
        kept = " Those of volumes that were there stay." if summary.skipped else ""
        yield f"There is no train.csv in {data}, so what is built has no labels.{kept}"
    if summary.updated:
        kinds = ", ".join(f"{text} of {n}" for kind, text in ANNOTATION_KINDS.items() if (n := summary.updates[kind]))
        yield f"{summary.updated} of {summary.skipped} volumes: labels updated ({kinds})."
    for uid, problem in sorted(summary.not_updated.items()):
        yield f"the labels of {uid} were not updated: {problem}"
