"""CacheLayout -> a cache that is of the right spec and can be written: what every run does first."""

from __future__ import annotations

import os
import secrets
from contextlib import AbstractContextManager
from pathlib import Path

from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.publish import is_disk_full, no_space_told, write_once
from aneurysm.cache.spec import CacheSpec, parse_spec
from aneurysm.errors import CacheError, CacheNotFoundError, SpecError, SpecMismatchError, UsageError
from aneurysm.inputs import Kind, Wanted, describe, mistake


def full_disk_told(cache: Path) -> AbstractContextManager[None]:
    """Turn the operating system's error of a full disk into ours, which says what to do with the cache."""
    return no_space_told(cache, "What is cached is complete; free some space and run the same command again to go on")


def is_done(layout: CacheLayout, uid: str) -> bool:
    """Say whether a series is cached, or recorded as one that can't be."""
    return layout.volume(uid).exists() or layout.record(uid).exists()


def done_series(layout: CacheLayout) -> set[str]:
    """Return the series of which `is_done` is true: two listings, where asking of each takes two looks at the disk."""
    return cached_series(layout) | _listed(layout.rejected, ".json")


def cached_series(layout: CacheLayout) -> set[str]:
    """Return the series that have a volume."""
    return _listed(layout.volumes, ".zarr")


def _listed(folder: Path, ending: str) -> set[str]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - 100,000 Path objects would take most of the time
    except FileNotFoundError:
        return set()
    return {n.removesuffix(ending) for n in names if n.endswith(ending)}


def open_cache(layout: CacheLayout, spec: CacheSpec) -> None:
    """Make the cache, or make sure that it is of ``spec``."""
    if layout.root.exists() and not layout.root.is_dir():
        raise UsageError(f"{layout.root} is a file; --cache names a folder")
    # A folder that is something else already stays what it is.
    if (found := describe(layout.root)).kind in (Kind.CACHE_VOLUME, Kind.CACHE_VOLUMES, Kind.RUN, Kind.DATA_SET):
        raise UsageError(f"{mistake(found, Wanted.CACHE)}. Name another folder with --cache")
    try:
        layout.volumes.mkdir(parents=True, exist_ok=True)
        if any(layout.volumes.iterdir()) and not layout.spec.exists():
            raise CacheError(f"{layout.root} has volumes but no spec.toml: whose they are can't be told")
        write_once(layout.spec, spec.to_toml())  # of two first runs with different specs one is refused below
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UsageError(f"the cache folder {layout.root} can't be written: {error.strerror}") from error
    there = read_spec(layout)
    if there.digest != spec.digest:
        raise SpecMismatchError(
            f"{layout.root} was made with spec {there.name!r} (digest {there.digest}), not with {spec.name!r} (digest "
            f"{spec.digest}). Name another folder with --cache, or go on with --spec {layout.spec}"
        )


def read_spec(layout: CacheLayout) -> CacheSpec:
    """Return the spec of a cache; raise `CacheNotFoundError` if there is none, `CacheError` if it can't be read."""
    try:
        return parse_spec(layout.spec.read_text("utf-8"), str(layout.spec))
    except FileNotFoundError as error:
        raise _no_cache(layout.root) from error
    except NotADirectoryError as error:
        raise _no_cache(layout.root) from error
    except OSError as error:
        raise CacheError(f"{layout.spec} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CacheError(f"the spec of the cache is damaged: {layout.spec} is no text") from error
    except SpecError as error:
        raise CacheError(f"the spec of the cache is damaged or of a newer version: {error}") from error


def _no_cache(root: Path) -> CacheNotFoundError:
    found = describe(root)
    if found.kind in (Kind.EMPTY, Kind.FOLDER):
        return CacheNotFoundError(f"there is no cache at {root}: it has no spec.toml")
    return CacheNotFoundError(f"there is no cache at {root}: {mistake(found, Wanted.CACHE)}")


def patient_secret(layout: CacheLayout) -> bytes:
    """Return the key of patient_key: from the environment, or of this cache, made at its first use."""
    if given := os.environ.get("ANEURYSM_PATIENT_KEY"):
        return given.encode()
    write_once(layout.patient_key, secrets.token_hex(32) + "\n", 0o600)
    if not (key := layout.patient_key.read_text("utf-8").strip()):
        raise CacheError(
            f"{layout.patient_key} is empty. Bring the key back, or remove the file: the next run makes another, and "
            "the patient_key of volumes built from then on is none of those that are there"
        )
    return key.encode()
