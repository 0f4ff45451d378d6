"""What the values of options are parsed by: each refuses what it does not know in a line that says what it takes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

import typer


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers from ``low`` to ``high``."""
    wanted = f"{low} or more" if high is None else f"{low} to {high}"

    def whole_number(text: str | int) -> int:
        if isinstance(text, int):  # a default
            return text
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not low <= int(text) <= (math.inf if high is None else high):
            raise typer.BadParameter(f"{text}: give a whole number, {wanted}")
        return int(text)

    return whole_number


def number(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """Return a parser of finite numbers from ``low`` (with ``above``: more than that) to ``high``."""
    wanted = f"more than {low:g}" if above else f"{low:g} or more"
    if high < math.inf:
        wanted = f"{wanted}, at most {high:g}" if above else f"{low:g} to {high:g}"

    def finite_number(text: str | float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high or (above and value == low):
            raise typer.BadParameter(f"{text}: give a number, {wanted}")
        return value

    return finite_number


def choice(names: Sequence[str]) -> Callable[[str], str]:
    """Return a parser of one of several names."""

    def name(text: str) -> str:
        if text not in names:
            raise typer.BadParameter(f"{text}: choose from {', '.join(names)}")
        return text

    return name


def parse_devices(text: str) -> int | Literal["auto"]:
    """Return a number of devices, or ``auto``."""
    if text == "auto":
        return "auto"
    if not re.fullmatch("0*[1-9][0-9]{0,5}", text):
        raise typer.BadParameter(f"{text}: give a number from 1, or auto")
    return int(text)


def parse_fold(text: str) -> int | Literal["all"]:
    """Return the number of a fold, from 0, or ``all``."""
    if text == "all":
        return "all"
    if not re.fullmatch("[0-9]{1,6}", text):
        raise typer.BadParameter(f"{text}: give a number from 0, or all")
    return int(text)


def patch_edges(text: str) -> list[int]:
    """Return the edges (z, y, x) of a patch by one edge in voxels, or by three."""
    edges = text.split(",")
    if len(edges) not in (1, 3) or not all(re.fullmatch("[0-9]{1,6}", edge.strip()) for edge in edges):
        raise typer.BadParameter(f"{text}: give one edge in voxels, or three as Z,Y,X")
    return [int(edge) for edge in (edges if len(edges) == 3 else edges * 3)]
