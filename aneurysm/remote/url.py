"""Which places are URLs of an object store: the one place that tells them from paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aneurysm.errors import UsageError

SCHEMES: Final = ("s3", "gs", "az")
"""``s3`` is what the tests try; the others are handed to the same library as they are."""
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_COLLAPSED: Final = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")


def is_url(place: str | Path) -> bool:
    """
    Return True if ``place`` is the URL of an object store, and no path.

    Raises
    ------
    UsageError
        It is a URL of another kind, which would make a strange folder; or it was one, until it was made a `Path`,
        which collapses slashes.
    """
    text = str(place)
    if found := _COLLAPSED.match(text):
        raise UsageError(f"{found[1]}: a URL has two slashes, {found[1]}://bucket/prefix; give it as text")
    if not (found := _URL.match(text)):
        return False
    if found[1] not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UsageError(f"{found[1]}:// is no URL of an object store that is known here. Known are {known}")
    return True


def checked_url(url: str) -> str:
    """
    Return ``url`` without a slash at its end.

    Raises
    ------
    UsageError
        It has credentials in it, which would end up in logs and in configurations; or no bucket, or parts that no
        such URL has. The message repeats nothing of what may be a secret.
    """
    parts = urlsplit(url)
    called = f"{parts.scheme}://"
    if "@" in parts.netloc:
        raise UsageError(
            f"the URL {called}...@{parts.netloc.rsplit('@', 1)[1]} has credentials in it, which would end up in logs. "
            "Give them by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or by a profile (AWS_PROFILE)"
        )
    if parts.query or parts.fragment:
        raise UsageError(
            f"{called}{parts.netloc}{parts.path}: what follows '?' or '#' has no meaning here. Leave it out"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", parts.netloc):
        raise UsageError(f"a URL of the kind {called} names a bucket: {called}bucket/prefix")
    path = parts.path.strip("/")
    if any(part in ("", ".", "..") for part in path.split("/")) and path:
        raise UsageError(f"{called}{parts.netloc}/{path}: a prefix has no empty parts, and none of dots")
    return f"{called}{parts.netloc}" + (f"/{path}" if path else "")


def join_url(place: str | Path, name: str) -> str:
    """Return how messages call the file ``name`` at ``place``, a URL or a folder."""
    return f"{str(place).rstrip('/')}/{name}"
