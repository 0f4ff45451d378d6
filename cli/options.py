"""Options that several commands have, and what is said of more workers than there are CPUs."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from aneurysm.cli.values import number, whole
from aneurysm.processes.threads import usable_cpus

MOST_WORKERS: Final = 1024

CacheOption = Annotated[
    str, typer.Option(metavar="DIR|URL", envvar="ANEURYSM_CACHE", help="Folder or URL of the cache.")
]
DataOption = Annotated[
    str,
    typer.Option(
        metavar="DIR|URL", envvar="ANEURYSM_DATA", help="Folder or URL of DICOM series: the RSNA layout, or any tree."
    ),
]
SpecOption = Annotated[
    str, typer.Option(metavar="NAME|FILE", help="Name of a shipped cache spec, or path of a TOML file.")
]
LocalCache = Annotated[
    str | None,
    typer.Option(
        envvar="ANEURYSM_LOCAL_CACHE",
        metavar="DIR",
        help="Where volumes of a cache at a URL are copied to.",
        show_default="~/.cache/aneurysm",
    ),
]
LocalCacheGb = Annotated[
    float | None,
    typer.Option(
        envvar="ANEURYSM_LOCAL_CACHE_GB",
        metavar="GB",
        parser=number(0, above=True),
        help="GB that they may take there.",
        show_default="100",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N", parser=whole(1, MOST_WORKERS), help="Processes.", show_default="one for each CPU that may be used"
    ),
]
TimeoutS = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        parser=number(0, above=True),
        help="Seconds that reading and building one series may take.",
        show_default="no limit",
    ),
]
MemoryMb = Annotated[
    int | None,
    typer.Option(metavar="MB", parser=whole(1), help="MB of memory that the same may take.", show_default="no limit"),
]


def chosen_workers(given: int | None, *, devices: int = 1) -> int:
    """Return how many processes to start for each of ``devices``; warn of more than twice as many as there are CPUs."""
    cpus = usable_cpus()
    sensible = max(1, cpus // devices)
    if given is None:
        return sensible
    if given > 2 * sensible:
        each = f" for each of {devices} devices" if devices > 1 else ""
        typer.echo(
            f"aneurysm: --workers {given}{each}: {cpus} CPUs may be used here, so {sensible} are sensible; more take "
            "more memory, and are not faster",
            err=True,
        )
    return given
