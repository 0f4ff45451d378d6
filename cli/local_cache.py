"""Options of the commands that read a cache in an object store: where its volumes are copied to."""

from __future__ import annotations

from typing import Annotated

import typer

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
        envvar="ANEURYSM_LOCAL_CACHE_GB", metavar="N", help="GB that they may take there.", show_default="100"
    ),
]
