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
from aneurysm.errors import UsageError
from aneurysm.remote.url import is_url, join_url
from aneurysm.spec import load_spec

if TYPE_CHECKING:
    from aneurysm.precaching.plan import Plan
    from aneurysm.precaching.run import RunSummary


def precache(
    ctx: typer.Context,
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
            help="Only the I-th of N parts, from 0, that take about as long; /N, or nothing, in a Slurm array or an "
            "indexed Kubernetes job. `aneurysm manifest` ends it.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            help="Build a part of this plan of `aneurysm plan`; --shard I, or the number of the array's task, says "
            "which.",
            show_default=False,
        ),
    ] = None,
    steal: Annotated[
        bool, typer.Option("--steal", help="When the part is done, take series of others that nobody has in hand.")
    ] = False,
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
    from aneurysm.precaching.partition import find_part, find_shard

    chosen = None
    if plan is None:
        part = find_shard(shard, os.environ)
    else:
        chosen = _chosen_plan(ctx, plan, data, cache, spec)
        data, cache = chosen.document.data, chosen.document.cache
        part = find_part(shard, os.environ, chosen.count)
    unwind_on_sigterm()
    result = Result("precache", as_json=as_json)
    progress = PrecacheProgress(task=str(part or ""))
    try:
        with progress:
            if part:
                progress.say(part.announcement)
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
                plan=chosen,
                steal=steal,
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
    if summary.stolen:
        result.say(f"{summary.stolen} of these were series of other parts.")
    for line in _annotation_lines(summary, data):
        result.say(line)
    if part:
        result.say(f"When all shards are done: aneurysm manifest --data {data} --cache {cache}")
    if summary.busy:
        result.say(f"{summary.busy} series are in the hands of another run: when it is done, run this again.")
    if summary.changed:
        again = "Make the plan again: aneurysm plan" if plan else "Start the array again as a new one"
        result.say(f"{summary.changed} series have changed since they were dealt out, and were not built. {again}.")
    if bad:
        where = (
            f"{join_url(cache, 'rejected')} says why of those that can't be"
            if part
            else join_url(cache, "manifest.csv")
        )
        result.say(f"{bad} series are not cached; {where}" + ("." if part else " says why."))
    code = Exit.OK
    if summary.busy or summary.changed:
        code = Exit.INCOMPLETE
    # Of what was built again and failed the volume is kept: it does not count among those that are not cached.
    elif bad or summary.rejected or summary.failed or summary.not_updated:
        code = Exit.SOME_FAILED
    result.end(code, {"cache": cache, "shard": str(part) if part else None} | vars(summary), exit_zero=exit_zero)


def _chosen_plan(ctx: typer.Context, plan: str, data: str, cache: str, spec: str) -> Plan:
    """Return the plan. Raises `UsageError` if it is not of what else was asked for."""
    from aneurysm.precaching.plan import read_plan
    from aneurysm.precaching.plan_folder import plan_folder

    own = {name for name in ctx.params if (source := ctx.get_parameter_source(name)) and source.name != "DEFAULT"}
    if options := sorted(own & {"series", "retry_failed", "overwrite"}):
        called = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise UsageError(f"{called}: which series a plan is of was said when it was made: aneurysm plan")
    chosen = read_plan(plan_folder(plan))
    document = chosen.document
    for name, value, planned in (("data", data, document.data), ("cache", cache, document.cache)):
        place = value.rstrip("/") if is_url(value) else str(Path(value).absolute())
        if name in own and place != planned:
            raise UsageError(f"--{name} is {value}, and {chosen.folder.name} is the plan of {planned}: leave it out")
    if "spec" in own and (digest := load_spec(spec).digest) != document.digest:
        raise UsageError(
            f"--spec {spec} has the digest {digest}, and {chosen.folder.name} is the plan of {document.spec_name} with "
            f"{document.digest}: leave it out, or make a plan of that spec"
        )
    return chosen


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
