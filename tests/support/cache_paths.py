"""Where volumes and records lie in a cache, as docs/cache.md says: written down once more, without the program."""

from __future__ import annotations

import hashlib
from pathlib import Path


def volume_name(uid: str) -> str:
    return f"volumes/{_subfolder(uid)}/{uid}.zarr"


def record_name(uid: str) -> str:
    return f"rejected/{_subfolder(uid)}/{uid}.json"


def volume_path(cache: Path, uid: str) -> Path:
    return cache / volume_name(uid)


def record_path(cache: Path, uid: str) -> Path:
    return cache / record_name(uid)


def volume_paths(cache: Path) -> list[Path]:
    paths = cache.glob("volumes/*/*.zarr")
    return sorted((path for path in paths if path == volume_path(cache, path.stem)), key=lambda path: path.name)


def record_paths(cache: Path) -> list[Path]:
    paths = cache.glob("rejected/*/*.json")
    return sorted((path for path in paths if path == record_path(cache, path.stem)), key=lambda path: path.name)


def _subfolder(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:2]
