"""aneurysm verify: whether a cache is what it says it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from aneurysm.cli.exits import Exit
from aneurysm.cli.options import CacheOption, Workers, chosen_workers
from aneurysm.cli.result import JsonOption, Result
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
    as_json: JsonOption = False,
) -> None:
    """Check tables, records, metadata, digests and hashes. Exit code 0: sound; 3: faults or differences were found."""
    from aneurysm.precaching.verify import verify as verify_cache

    result = Result("verify", as_json=as_json)
    report = verify_cache(cache, data=data, deep=deep, workers=chosen_workers(workers), fix=fix)
    for fault in report.faults:
        result.say(f"{fault.where}: {fault.what}. {fault.advice}")
    checked = f"{report.volumes} volumes, {size_text(report.bytes_read)}" + (" and every chunk" if deep else "")
    if report.fixed:
        result.say(f"{' and '.join(report.fixed)} were not what the volumes and records give, and are written again.")
    if report.faults:
        result.say(f"{len(report.faults)} faults in {cache}; checked {checked}.")
    else:
        result.say(f"{cache} is sound; checked {checked}.")
    result.end(Exit.CACHE if report.faults else Exit.OK, {"cache": cache, "deep": deep} | asdict(report))
