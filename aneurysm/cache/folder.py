"""CacheLayout -> a cache that is of the right spec and can be written: what every run does first."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

from aneurysm.cache.layout import (
    FORMAT_VERSION,
    RECORD_ENDING,
    SUBFOLDERS,
    VOLUME_ENDING,
    CacheLayout,
    subfolder_of,
)
from aneurysm.errors import (
    CacheError,
    CacheNotFoundError,
    PatientKeyError,
    SpecError,
    SpecMismatchError,
    UsageError,
)
from aneurysm.inputs import InputKind, Wanted, describe, mistake
from aneurysm.processes.files import is_disk_full, write_once
from aneurysm.processes.shared_folder import describe_denial, make_folder
from aneurysm.processes.threads import map_io
from aneurysm.spec import CacheSpec, parse_spec

_KEY: Final = "ANEURYSM_PATIENT_KEY"
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{32}")


def is_done(layout: CacheLayout, uid: str) -> bool:
    """Return True if a series is cached, or recorded as one that can't be."""
    return layout.volume(uid).exists() or layout.record(uid).exists()


def done_series(layout: CacheLayout) -> set[str]:
    """Return the series of which `is_done` is true: listings, where asking of each takes two looks at the disk."""
    done = cached_series(layout)
    done |= recorded_series(layout)
    return done


def cached_series(layout: CacheLayout) -> set[str]:
    """Return the series that have a volume."""
    return _series_in(layout.volumes, VOLUME_ENDING)


def recorded_series(layout: CacheLayout) -> set[str]:
    """Return the series that have a record of why they are not cached; some may have been built since."""
    return _series_in(layout.rejected, RECORD_ENDING)


def has_volumes(layout: CacheLayout) -> bool:
    """Return True if there is a volume at all, or something that is no folder for them."""
    names = _names_in(layout.volumes)
    return any(name not in SUBFOLDERS or _names_in(layout.volumes / name) for name in names)


def strange_names(folder: Path, ending: str, subfolders: Sequence[str] = SUBFOLDERS) -> list[str]:
    """
    Return what does not belong into ``folder``, that of all volumes or of all records, by its path in it.

    Of several who look into some ``subfolders`` each, the one of the first also tells what lies beside these.
    """

    def look(name: str) -> list[str]:
        if name not in SUBFOLDERS or not (folder / name).is_dir():
            return [name]
        own = set(series_in_subfolder(folder / name, ending))
        return [f"{name}/{entry}" for entry in _names_in(folder / name) if entry.removesuffix(ending) not in own]

    chosen = {*subfolders, *(set(_names_in(folder)) - set(SUBFOLDERS) if SUBFOLDERS[0] in subfolders else ())}
    names = sorted(chosen.intersection(_names_in(folder)))
    return [path for paths in map_io(names, look, batch=1) for path in sorted(paths)]


def subfolders_in(*folders: Path) -> list[str]:
    """Return which of `SUBFOLDERS` one of ``folders`` has, or a file of that stem: in a small cache few of them."""
    names = {name.partition(".")[0] for folder in folders for name in _names_in(folder)}
    return [name for name in SUBFOLDERS if name in names]


def _series_in(folder: Path, ending: str) -> set[str]:
    parts = map_io(subfolders_in(folder), lambda name: series_in_subfolder(folder / name, ending), batch=1)
    # One string with that of the data and tables: see `aneurysm.rawdata.tables`.
    return {sys.intern(uid) for uids in parts for uid in uids}


def series_in_subfolder(folder: Path, ending: str) -> list[str]:
    """Return the series that have a volume or a record (by its ``ending``) in one of `SUBFOLDERS` that is theirs."""
    uids = (name.removesuffix(ending) for name in _names_in(folder) if name.endswith(ending))
    return [uid for uid in uids if subfolder_of(uid) == folder.name]


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - 100,000 Path objects would take most of the time
    except (FileNotFoundError, NotADirectoryError):
        return []


def refuse_old_layout(root: str | Path, names: Iterable[str]) -> None:
    """Raise `CacheError` if volumes are among ``names``, those directly in ``root`` / volumes: so they were up to 3."""
    if any(name.endswith(VOLUME_ENDING) for name in names):
        raise CacheError(
            f"{root} is of cache format 3 or older: its volumes are directly in volumes/. Build it again, in another "
            f"place: this program reads format {FORMAT_VERSION} only"
        )


def prepare_cache(layout: CacheLayout, spec: CacheSpec) -> None:
    """Make the cache, or make sure that it is of ``spec``."""
    if layout.root.exists() and not layout.root.is_dir():
        raise UsageError(f"{layout.root} is a file; --cache names a folder")
    # A folder that is something else already stays what it is.
    if (found := describe(layout.root)).kind in (
        InputKind.CACHE_VOLUME,
        InputKind.CACHE_VOLUMES,
        InputKind.RUN,
        InputKind.DATA_SET,
    ):
        raise UsageError(f"{mistake(found, Wanted.CACHE)}. Name another folder with --cache")
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        make_folder(layout.volumes)
        refuse_old_layout(layout.root, _names_in(layout.volumes))
        if has_volumes(layout) and not layout.spec.exists():
            raise CacheError(f"{layout.root} has volumes but no spec.toml: of which spec they are is not known")
        write_once(layout.spec, spec.to_toml())  # of two first runs with different specs one is refused below
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UsageError(f"the cache folder {layout.root} can't be written: {describe_denial(error)}") from error
    there = read_spec(layout)
    if what := there.mismatch():
        raise SpecMismatchError(
            f"{layout.root} can't be added to. Of its spec.toml: {what}. Go on with the release that began the cache, "
            "on all nodes; or name another folder with --cache"
        )
    if there.digest != spec.digest:
        raise SpecMismatchError(
            f"{layout.root} was made with spec {there.name!r} (digest {there.digest}), not with {spec.name!r} (digest "
            f"{spec.digest}). Name another folder with --cache, or go on with --spec {layout.spec}"
        )


def read_spec(layout: CacheLayout) -> CacheSpec:
    """Return the spec of a cache; raise `CacheNotFoundError` if there is none, `CacheError` if it can't be read."""
    try:
        spec = parse_spec(layout.spec.read_text("utf-8"), str(layout.spec), resolved=True)
    except FileNotFoundError as error:
        raise _no_cache(layout.root) from error
    except NotADirectoryError as error:
        raise _no_cache(layout.root) from error
    except OSError as error:
        raise CacheError(f"{layout.spec} can't be read: {describe_denial(error)}") from error
    except UnicodeDecodeError as error:
        raise CacheError(f"the spec of the cache is damaged: {layout.spec} is no text") from error
    except SpecError as error:
        raise CacheError(f"the spec of the cache is damaged or of another version: {error}") from error
    refuse_old_layout(layout.root, _names_in(layout.volumes))
    return spec


def _no_cache(root: Path) -> CacheNotFoundError:
    found = describe(root)
    if found.kind in (InputKind.EMPTY, InputKind.FOLDER):
        return CacheNotFoundError(f"there is no cache at {root}: it has no spec.toml")
    return CacheNotFoundError(f"there is no cache at {root}: {mistake(found, Wanted.CACHE)}")


def patient_secret(layout: CacheLayout) -> bytes:
    """
    Return the key of patient_key: from the environment, or of this cache, made at its first use.

    A fingerprint of it is left in the cache. By a second key a patient would have two patient_keys, and folds would put
    him both among those that are trained on and among those held out.

    Raises
    ------
    PatientKeyError
        It is not the key that the cache was begun with, or that can't be known.
    """
    given, own = os.environ.get(_KEY, "").strip(), layout.patient_key
    if not layout.patient_key_check.exists() and has_volumes(layout):
        if not own.exists():
            raise PatientKeyError(
                f"{layout.root} has volumes, but neither {own.name} nor {layout.patient_key_check.name}: with which "
                "key its patient_keys were made can't be known. Bring these files back, or build the cache again"
            )
        write_once(layout.patient_key_check, key_fingerprint(_own_key(layout)) + "\n")
    if not given and not own.exists():
        if layout.patient_key_check.exists():
            raise PatientKeyError(
                f"the key of patient_key is not with {layout.root}: set {_KEY} to that which the cache was begun with, "
                f"or bring {own.name} back"
            )
        write_once(own, secrets.token_hex(32) + "\n", 0o600)
    key = given.encode() if given else _own_key(layout)
    write_once(layout.patient_key_check, key_fingerprint(key) + "\n")
    if fault := key_fault(layout):
        raise PatientKeyError(fault)
    return key


def key_fault(layout: CacheLayout) -> str:
    """Return what is wrong with the key of patient_key, as far as it is with the cache or the environment; or ""."""
    check = layout.patient_key_check
    try:
        expected = check.read_text("ascii").strip()
    except FileNotFoundError:
        return f"{check.name} is missing: by it runs with another key are refused" if has_volumes(layout) else ""
    except UnicodeDecodeError:
        expected = ""
    if not _FINGERPRINT.fullmatch(expected):
        return f"{check.name} is damaged: bring it back, or remove it if {layout.patient_key.name} is there"
    given = os.environ.get(_KEY, "").strip()
    if given and key_fingerprint(given.encode()) != expected:
        return (
            f"{layout.root} was begun with another key of patient_key than {_KEY} has now: one patient would have two "
            f"keys, and come into two folds. Set it to the key of this cache"
            + (f", or unset it: {layout.patient_key.name} is there" if layout.patient_key.exists() else "")
        )
    with suppress(FileNotFoundError, PermissionError):  # it may be kept elsewhere, or from those who only read
        if key_fingerprint(_own_key(layout)) != expected:
            return (
                f"{layout.patient_key.name} is not the key that {layout.root} was begun with: one patient would have "
                f"two keys, and come into two folds. Bring the right one back, or set {_KEY} to it"
            )
    return ""


@lru_cache(maxsize=4)  # it is meant to be slow, and asked for more than once in a run
def key_fingerprint(key: bytes) -> str:
    """Return what tells keys of patient_key apart. It takes a while: a short key must not be found by trying."""
    return hashlib.pbkdf2_hmac("sha256", key, b"aneurysm patient_key", 20_000).hex()[:32]


def _own_key(layout: CacheLayout) -> bytes:
    try:
        key = layout.patient_key.read_text("utf-8").strip()
    except UnicodeDecodeError:
        key = ""
    if not key:
        raise PatientKeyError(f"{layout.patient_key} is empty or damaged. Bring the key back")
    return key.encode()
