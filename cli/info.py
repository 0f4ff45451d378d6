"""aneurysm info: what is in a cache, or in one volume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    uid: Annotated[str | None, typer.Argument(help="A series; the whole cache if not given.")] = None,
    cache: Annotated[Path, typer.Option(envvar="ANEURYSM_CACHE", help="Folder of the cache.")] = Path("cache"),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    png: Annotated[Path | None, typer.Option(help="Draw the series to this file.", show_default=False)] = None,
) -> None:
    """Show what is in the cache, or in one of its volumes."""
    raise NotImplementedError
