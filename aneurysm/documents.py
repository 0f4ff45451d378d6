"""JSON and TOML that somebody else may have written: parsed within bounds, every fault a ValueError."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final

MOST_TOML: Final = 256 * 1024
"""Bytes: a hundred times a spec or a configuration of a training run."""
MOST_JSON: Final = 64 * 2**20
"""Bytes: a hundred times the metadata of a volume."""
_MOST_PARTS: Final = 50
"""Of a dotted key: tomllib takes time by the square of their number."""
_KEY_LIKE: Final = re.compile(r"[\w\-\"' \t.]+")
_PART: Final = re.compile(r"[\w\-\"'][ \t]*\.")
_TOO_DEEP: Final = "it is nested too deep"


def read_bounded(path: Path, most: int) -> bytes:
    """
    Return the content of ``path``.

    Raises
    ------
    ValueError
        It is longer than ``most`` bytes.
    OSError
        The file can't be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"it is longer than {most} bytes")
        return file.read(most)


def parse_toml(text: str) -> dict[str, Any]:
    """Return the table that TOML ``text`` holds. Raises `ValueError` if it is none, too long, or nested too deep."""
    if len(text) > MOST_TOML:
        raise ValueError(f"it is longer than {MOST_TOML} characters")
    if any(len(_PART.findall(key[0])) > _MOST_PARTS for key in _KEY_LIKE.finditer(text)):
        raise ValueError(_TOO_DEEP)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file. Raises as `parse_toml`, and `OSError` if the file can't be read."""
    return parse_toml(read_bounded(path, MOST_TOML).decode("utf-8"))


def parse_json(content: bytes | str) -> Any:
    """Return what JSON ``content`` holds. Raises `ValueError` if it is not JSON, or nested too deep."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises as `parse_json` or if it is too long, and `OSError` if it can't be read."""
    return parse_json(read_bounded(path, MOST_JSON))


def format_problem(error: dict[str, Any]) -> str:
    """Return one of pydantic's errors as a user wants to read it: the key first."""
    key = ".".join(str(part) for part in error["loc"])
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key}"
        case "missing":
            return f"key {key} is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    if not key:
        return message
    given = "" if isinstance(error["input"], dict) else f" (found {error['input']!r})"
    return f"{key}: {message}{given}"
