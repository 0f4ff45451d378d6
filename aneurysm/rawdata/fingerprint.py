"""DataFingerprint: by what a plan tells that the tables, or what lies at the top of the data, are others now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileFingerprint(_Model):
    """
    Of one file; two with the same ``content`` are the same.

    Attributes
    ----------
    stamp
        When it was last changed, in ns, of a file that is not read again if this is still so; "" of an object.
    content
        The SHA-256 of a file, the ETag of an object.
    """

    bytes: int
    stamp: str
    content: str


class DataFingerprint(_Model):
    """
    Of a data folder or bucket.

    Attributes
    ----------
    top_level
        Hash of the names directly in it.
    tables
        The tables that there are, by name.
    """

    top_level: str
    tables: dict[str, FileFingerprint]

    def contents(self) -> dict[str, str]:
        """Return what differs if a table does: its content by name."""
        return {name: table.content for name, table in sorted(self.tables.items())}


def names_hash(names: Iterable[str]) -> str:
    """Return the SHA-256 of names in this order."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def file_fingerprint(path: Path, known: FileFingerprint | None) -> FileFingerprint | None:
    """Return that of a file, None if there is none; ``known`` if it looks as it did then. Raises `OSError`."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if known is not None and (known.bytes, known.stamp) == (status.st_size, str(status.st_mtime_ns)):
        return known
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFingerprint(bytes=status.st_size, stamp=str(status.st_mtime_ns), content=content)
