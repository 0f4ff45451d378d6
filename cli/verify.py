"""aneurysm verify: whether a cache is what it says it is."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer

from aneurysm.cli.exits import Exit
from aneurysm.cli.options import CacheOption, Workers, chosen_workers
from aneurysm.cli.result import JsonOption, Result
from aneurysm.cli.values import whole
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
        bool,
        typer.Option(
            "--fix",
            help="Write again what is derived: labels of bone that are absent, or of another version, by the voxels; "
            "manifest.csv and lesions.csv if they are wrong.",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only the I-th of N parts of the volumes, from 0, by the folders that they lie in; /N, or nothing, in "
            "a Slurm array or an indexed Kubernetes job.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=whole(1),
            help="Only N volumes, by a hash of their UIDs: always the same.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", parser=whole(0), help="With --sample: another number chooses other volumes.")
    ] = 0,
    workers: Workers = None,
    as_json: JsonOption = False,
) -> None:
    """Check tables, records, metadata, digests and hashes. Exit code 0: sound; 3: faults or differences were found."""
    from aneurysm.precaching.partition import find_shard
    from aneurysm.precaching.verify import Sample
    from aneurysm.precaching.verify import verify as verify_cache

    result = Result("verify", as_json=as_json)
    part = find_shard(shard, os.environ)
    if part:
        typer.echo(part.announcement, err=True)
    report = verify_cache(
        cache,
        data=data,
        deep=deep,
        workers=chosen_workers(workers),
        fix=fix,
        shard=part,
        sample=None if sample is None else Sample(sample, seed),
    )
    for fault in report.faults:
        result.say(f"{fault.where}: {fault.what}. {fault.advice}")
    checked = f"{report.volumes} volumes, {size_text(report.bytes_read)}" + (" and every chunk" if deep else "")
    chosen = [] if sample is None else [f"a sample of seed {seed}"]
    chosen += [f"shard {part}"] if part else []
    if chosen:
        checked += f" ({', '.join(chosen)}: the rest was not looked at)"
    if report.relabelled:
        result.say(f"Bone is labelled in {report.relabelled} volumes, and the tables are written again.")
    elif report.fixed:
        result.say(f"{' and '.join(report.fixed)} were not what the volumes and records give, and are written again.")
    if report.faults:
        result.say(f"{len(report.faults)} faults in {cache}; checked {checked}.")
    else:
        sound = f"no fault in this part of {cache}" if chosen else f"{cache} is sound"
        result.say(f"{sound}; checked {checked}.")
    part_of = {"cache": cache, "deep": deep, "shard": str(part) if part else None, "sample": sample, "seed": seed}
    result.end(Exit.CACHE if report.faults else Exit.OK, part_of | asdict(report))
