"""Versions of what builds a volume: this program, and the libraries by which a byte of a volume may differ.

They stand in the volume's metadata beside the hashes, and in none of them: two builds of one series by two versions
are one volume as long as their voxels are the same. A hash of their own guards them; by its first digits manifest.csv
names the builder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from aneurysm._version import __version__

DISTRIBUTIONS: Final = (
    "imagecodecs",
    "nibabel",
    "numcodecs",
    "numpy",
    "pydicom",
    "pyjpegls",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "python-gdcm",
    "scipy",
    "SimpleITK",
)
"""Libraries that decode pixels, read masks, compute voxels or pack them; not those that write metadata alone."""
_DIGITS: Final = 8


@cache
def builder_versions() -> Mapping[str, str]:
    """Return the versions of this program and of those of `DISTRIBUTIONS` that are installed, by name."""
    versions = {"aneurysm": __version__}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # it was put there without metadata, as by some packagers
            continue
    return versions


def builder_hash(versions: Mapping[str, str]) -> str:
    """Return the hash of the versions of a builder."""
    content = json.dumps(dict(versions), sort_keys=True, separators=(",", ":")).encode()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def builder_name(versions: Mapping[str, str]) -> str:
    """Return what manifest.csv calls a builder: the version of this program, and digits that differ if any does."""
    return f"{versions.get('aneurysm', '')}+{builder_hash(versions).removeprefix('sha256:')[:_DIGITS]}"
