"""A path that a user named -> what lies there, and what to do where something else is wanted.

Looks at names and at the first bytes of a file, so that a mistake is answered before anything large is imported.
Names of data's files and folders are not repeated, but for the path that was named.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Final

_HEAD: Final = 1024
_ENTRIES: Final = 1000
"""So many names of a folder are listed: enough to know it, and quick on a network disk."""
_FOLDERS: Final = 20
"""This many folders of a folder are looked into: each takes requests of its own, of a network disk."""
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+){3,}")
_ARCHIVES: Final = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
)
_RUN_PARTS: Final = ("checkpoints", "evaluation", "evaluation-fresh", "tensorboard")
_UNPACK: Final = "unpack it, and name the folder"
_ARRAYS: Final = "only DICOM is read; arrays become a cache through CacheWriter (docs/own_arrays.md)"


class InputKind(StrEnum):
    """What a path can lead to."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    CACHE = "cache"
    CACHE_VOLUME = "cache volume"
    CACHE_VOLUMES = "folder of cache volumes"
    RUN = "run"
    RUNS = "folder of runs"
    RUN_PART = "part of a run"
    CHECKPOINT = "checkpoint"
    DATA_SET = "data set"
    EMPTY = "empty folder"
    FOLDER = "folder"
    DICOM = "DICOM file"
    ARCHIVE = "archive"
    COMPRESSED_DICOM = "compressed DICOM file"
    NIFTI = "NIfTI file"
    FILE = "file"


class Wanted(StrEnum):
    """What a path was to lead to."""

    DATA = "data"
    CACHE = "cache"
    RUN = "run"
    CHECKPOINT = "checkpoint"
    SERIES = "series"


@dataclass(frozen=True)
class Found:
    """
    What lies at a path.

    Attributes
    ----------
    words
        With an article: ``a ZIP archive``. Of what is missing, the reason.
    better
        The path that was likely meant; None if there is no better one.
    """

    path: Path
    kind: InputKind
    words: str
    better: Path | None = None


def describe(path: str | Path) -> Found:
    """Return what lies at ``path``. Never raises an `OSError`."""
    path = Path(path)
    try:
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return _file(path)
        if path.exists():  # a pipe would be waited for
            return Found(path, InputKind.UNREADABLE, "is neither a file nor a folder, but a pipe or a device")
        return _missing(path)
    except OSError as error:
        return Found(path, InputKind.UNREADABLE, f"can't be read: {error.strerror or error}")


def mistake(found: Found, wanted: Wanted) -> str | None:
    """Return what is wrong with a path where something else is wanted, and what to do; None if it may be right."""
    path = found.path
    if found.kind == InputKind.MISSING:
        return found.words
    if found.kind == InputKind.UNREADABLE:
        return f"{path} {found.words}"
    advice = _advice(found, wanted)
    return None if advice is None else f"{path} is {found.words}: {advice}"


def _advice(found: Found, wanted: Wanted) -> str | None:  # noqa: C901 - a table
    kind, better = found.kind, found.better
    match wanted, kind:
        # What is right, or is only known once it is read.
        case (
            (Wanted.DATA | Wanted.SERIES, InputKind.DATA_SET | InputKind.FOLDER)
            | (
                Wanted.SERIES,
                InputKind.CACHE | InputKind.CACHE_VOLUME | InputKind.EMPTY | InputKind.DICOM | InputKind.FILE,
            )
            | (Wanted.CACHE, InputKind.CACHE)
            | (Wanted.RUN, InputKind.RUN)
            | (Wanted.CHECKPOINT, InputKind.CHECKPOINT | InputKind.FILE)
        ):
            return None
        case (Wanted.DATA | Wanted.SERIES, InputKind.ARCHIVE):
            return _UNPACK
        case (Wanted.DATA | Wanted.SERIES, InputKind.COMPRESSED_DICOM):
            return "unpack it (gunzip), with all of its series, and name their folder"
        case (Wanted.DATA | Wanted.SERIES, InputKind.NIFTI):
            return _ARRAYS
        case (Wanted.DATA, InputKind.DICOM | InputKind.FILE):
            return "name the folder above all series"
        case (Wanted.DATA, InputKind.EMPTY):
            return "name the folder that holds the DICOM series"
        case (Wanted.DATA, InputKind.CACHE | InputKind.CACHE_VOLUME | InputKind.CACHE_VOLUMES):
            return "a cache is named with --cache, and --data is the folder of DICOM series that it is built from"
        case (Wanted.DATA | Wanted.SERIES, InputKind.RUN | InputKind.RUN_PART | InputKind.CHECKPOINT):
            return "there are no series in it"
        case (Wanted.DATA | Wanted.SERIES, InputKind.RUNS):
            return f"there are no series in it; a run is named by its own folder, as {better}"
        case (Wanted.SERIES, InputKind.CACHE_VOLUMES):
            return f"name the cache, {better}, or one of the volumes"
        case (Wanted.CACHE, InputKind.CACHE_VOLUME | InputKind.CACHE_VOLUMES):
            return f"the cache is {better}"
        case (Wanted.CACHE, InputKind.RUN | InputKind.RUN_PART | InputKind.RUNS | InputKind.CHECKPOINT):
            return "the cache that a run was trained on is named in its config.toml"
        case (Wanted.CACHE, InputKind.DATA_SET):
            return "`aneurysm precache --data` builds a cache from it, in a folder of its own"
        case (Wanted.CACHE, InputKind.EMPTY | InputKind.FOLDER):
            return "it has no spec.toml"
        case (Wanted.CACHE, _):
            return "a cache is a folder"
        case (Wanted.RUN, InputKind.CHECKPOINT | InputKind.RUN_PART) if better is not None:
            return f"the run is {better}"
        case (Wanted.RUN, InputKind.RUNS) | (Wanted.CHECKPOINT, InputKind.RUNS):
            return f"name one of the runs in it, as {better}"
        case (Wanted.CHECKPOINT, InputKind.RUN | InputKind.RUN_PART) if better is not None:
            return f"name its checkpoint, {better}"
        case (Wanted.RUN, _):
            return "a run is a folder that `aneurysm train` wrote, with config.toml and predictions_val.csv"
        case _:
            return "a checkpoint is a file that `aneurysm train` wrote, RUN/checkpoints/best.ckpt"


def _folder(path: Path) -> Found:
    names = [e.name for e in _visible_entries(path)]
    if not names:
        return Found(path, InputKind.EMPTY, "an empty folder")
    if "spec.toml" in names:
        return Found(path, InputKind.CACHE, "a cache")
    if "zarr.json" in names:
        cache = _cache_of(path.parent)
        words = "a Zarr group" if cache is None else "a volume of a cache"
        return Found(path, InputKind.CACHE_VOLUME, words, cache or path.parent)
    if (cache := _cache_of(path)) is not None:
        return Found(path, InputKind.CACHE_VOLUMES, "the folder of a cache's volumes", cache)
    if _is_run(path):
        best = path / "checkpoints" / "best.ckpt"
        return Found(path, InputKind.RUN, "a run of `aneurysm train`", best if best.is_file() else None)
    if path.absolute().name in _RUN_PARTS and _is_run(path.absolute().parent):
        return Found(path, InputKind.RUN_PART, "a folder within a run", path.parent)
    if "series" in names and (path / "series").is_dir():
        return Found(path, InputKind.DATA_SET, "a data set in the RSNA layout")
    if runs := list(islice(filter(_is_run, folders_inside(path)), 3)):
        return Found(path, InputKind.RUNS, f"a folder of runs ({', '.join(run.name for run in runs)})", runs[0])
    return Found(path, InputKind.FOLDER, "a folder")


def folders_inside(path: Path) -> list[Path]:
    """Return the first few folders of a folder by name that can be looked into, links included. Raises `OSError`."""
    # A link is not followed to see what it is to: that would raise an error of one to itself.
    folders = (e.path for e in _visible_entries(path) if e.is_dir(follow_symlinks=False) or e.is_symlink())
    return [Path(p) for p in islice((p for p in folders if os.access(p, os.X_OK)), _FOLDERS)]


def _visible_entries(path: Path) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted(islice((e for e in entries if not e.name.startswith(".")), _ENTRIES), key=lambda e: e.name)


def _cache_of(folder: Path) -> Path | None:
    """Return the cache of which ``folder`` is that of its volumes, or of a part of them; None if it is another one."""
    places = (place for place in (folder, folder.parent) if place.absolute().name == "volumes")
    return next((place.parent for place in places if (place.parent / "spec.toml").is_file()), None)


def _is_run(path: Path) -> bool:
    """Return True if `aneurysm train` made the folder, finished or not, or `aneurysm evaluate --fresh` one like it."""
    # Not by config.toml alone, which many a project has beside its data.
    configured = all((path / name).is_file() for name in ("config.toml", "folds.csv"))
    return configured or (path / "checkpoints").is_dir() or (path / "predictions_val.csv").is_file()


def _file(path: Path) -> Found:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return _known(path, head) or Found(path, InputKind.FILE, "an empty file" if not head else "a file")


def _known(path: Path, head: bytes) -> Found | None:
    name = path.name.lower()
    if head[128:132] == b"DICM":
        return Found(path, InputKind.DICOM, "a DICOM file")
    if name.endswith((".ckpt", ".pt", ".pth")) or (head.startswith(b"PK\x03\x04") and b"/data.pkl" in head):
        place = path.parent.parent if path.absolute().parent.name == "checkpoints" else None
        return Found(path, InputKind.CHECKPOINT, "a checkpoint", place)
    if name.endswith((".nii", ".nii.gz")) or head[344:348] in (b"n+1\0", b"ni1\0") or head[4:7] == b"n+2":
        return Found(path, InputKind.NIFTI, "a NIfTI file")
    if head.startswith(b"NRRD000"):
        return Found(path, InputKind.NIFTI, "an NRRD file")
    if head[257:262] == b"ustar":
        return Found(path, InputKind.ARCHIVE, "a tar archive")
    if head.startswith(b"\x1f\x8b"):
        return _gzip(path, head)
    for magic, words in _ARCHIVES:
        if head.startswith(magic):
            return Found(path, InputKind.ARCHIVE, words)
    return None


def _gzip(path: Path, head: bytes) -> Found:
    try:
        inner = zlib.decompressobj(31).decompress(head, _HEAD)  # no more than that, whatever it would inflate to
    except zlib.error:
        inner = b""
    name = path.name.lower().removesuffix(".gz")
    if inner[128:132] == b"DICM" or name.endswith(".dcm"):
        return Found(path, InputKind.COMPRESSED_DICOM, "a DICOM file compressed with gzip")
    if inner[344:348] in (b"n+1\0", b"ni1\0"):
        return Found(path, InputKind.NIFTI, "a NIfTI file")
    tar = inner[257:262] == b"ustar" or name.endswith((".tar", ".tgz"))
    return Found(path, InputKind.ARCHIVE, "a tar archive" if tar else "a file compressed with gzip")


def _missing(path: Path) -> Found:
    """Return why there may be nothing at a path: one reason, the likeliest."""
    text = str(path)
    if path.is_symlink():
        why = f"{text} is a link to something that is not there"
    elif _UID.fullmatch(text):
        why = (
            f"there is no file or folder {text}. A UID alone does not say where the series is: name its folder, or its "
            f"volume in a cache, CACHE/volumes/<hh>/{text}.zarr"
        )
    elif re.match(r"[A-Za-z]:[\\/]|\\\\", text):
        why = f"there is no {text}: that is how Windows names a place; here it is named from /, as under /mnt"
    elif re.search(r"[*?\[]", path.name):
        why = f"there is nothing that matches {text}"
    else:
        absolute = path.absolute()
        above = next((p for p in absolute.parents if p.exists()), absolute.parent)
        lacking = absolute.relative_to(above).parts[0]
        why = f"there is no {text}"
        if above.is_dir() and above / lacking != absolute:
            why += f", and no {above / lacking}"
        elif not above.is_dir():
            why += f": {above} is no folder"
    return Found(path, InputKind.MISSING, why)


def hidden_series(folder: Path) -> str:
    """Return what is in a tree without DICOM that may be series all the same, and what to do; "" if nothing is."""
    counts = dict.fromkeys(("compressed DICOM", "archive", "NIfTI"), 0)
    for name in islice(_tree(folder), _ENTRIES):
        lower = name.lower()
        for kind, endings in (
            ("compressed DICOM", (".dcm.gz", ".dcm.bz2", ".dcm.xz", ".dcm.zst")),
            ("NIfTI", (".nii", ".nii.gz", ".nrrd")),
            ("archive", (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")),
        ):
            if lower.endswith(endings):
                counts[kind] += 1
                break
    kind = max(counts, key=lambda k: counts[k])
    if not counts[kind]:
        return ""
    what = {"compressed DICOM": "unpack them first", "archive": "unpack them first", "NIfTI": _ARRAYS}[kind]
    return f"{counts[kind]} of the files are {kind} files by their names: {what}"


def _tree(folder: Path) -> Iterator[str]:
    for _, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".zarr"))
        yield from files
