"""What a run left on disk, read without the program: so a fault in it can't hide in the helper that looks for it."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.cache_paths import record_paths, volume_path, volume_paths


def manifest(cache: Path) -> dict[str, dict[str, str]]:
    """manifest.csv as text, by series; asserts that no series has two rows."""
    with (cache / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_uid = {row["series_uid"]: row for row in rows}
    assert len(by_uid) == len(rows), "a series stands twice in the manifest"
    return by_uid


def attributes(cache: Path, uid: str) -> dict[str, Any]:
    """The `aneurysm` attribute of a cached volume, read as plain JSON."""
    text = (volume_path(cache, uid) / "zarr.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)["attributes"]["aneurysm"]
    return found


def stored_voxels(cache: Path, uid: str) -> np.ndarray:
    """Array `0` of a cached volume."""
    import zarr

    group = zarr.open_group(volume_path(cache, uid), mode="r")
    return np.asarray(group["0"][...])


def tree_digest(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256, for every file below `folder`; empty folders as ``path/`` -> ``""``."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()) and not re.fullmatch("[0-9a-f]{2}", name):  # one of volumes that are gone
            digests[name + "/"] = ""
    return digests


def leftovers(cache: Path) -> list[str]:
    """Everything under CACHE that a finished run should not leave."""
    known = {
        "spec.toml",
        "manifest.csv",
        "volumes",
        "rejected",
        ".building",
        ".tables",
        "lesions.csv",
        ".patient-key",
        ".patient-key-check",
        ".runs",
    }
    left = [p.name for p in cache.iterdir() if p.name not in known]
    building = cache / ".building"
    if building.exists():
        left += [p.relative_to(cache).as_posix() for p in building.rglob("*")]
    left += [p.relative_to(cache).as_posix() for p in cache.glob(".runs/*/*") if p.suffix != ".jsonl"]
    left += [f".tables/{p.name}" for p in cache.glob(".tables/*") if p.suffix != ".jsonl"]
    complete = {*volume_paths(cache), *record_paths(cache)}
    complete |= {path.parent for path in complete}
    for folder in (cache / "volumes", cache / "rejected"):
        entries = {*folder.glob("*"), *folder.glob("*/*")}
        left += [p.relative_to(cache).as_posix() for p in sorted(entries - complete) if p.is_file() or any(p.iterdir())]
    return left


def same_cache(cache: Path, reference: Path) -> list[str]:
    """Differences between two caches: bytes of every volume, every manifest column but the time it took."""
    differences = []
    ours, theirs = tree_digest(cache / "volumes"), tree_digest(reference / "volumes")
    differences += [f"only here: {name}" for name in sorted(ours.keys() - theirs.keys())]
    differences += [f"missing: {name}" for name in sorted(theirs.keys() - ours.keys())]
    differences += [f"other bytes: {n}" for n in sorted(ours.keys() & theirs.keys()) if ours[n] != theirs[n]]
    rows, expected = manifest(cache), manifest(reference)
    if list(rows) != list(expected):
        differences.append(f"manifest rows: {list(rows)} instead of {list(expected)}")
    for uid in rows.keys() & expected.keys():
        for column in expected[uid]:
            if not column.startswith("seconds") and rows[uid][column] != expected[uid][column]:
                differences.append(f"{uid} {column}: {rows[uid][column]!r} instead of {expected[uid][column]!r}")
    return differences
