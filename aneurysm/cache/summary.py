"""Cache or volume -> plain facts, for `aneurysm info` to print as tables or JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from aneurysm.cache.cache import open_cache
from aneurysm.cache.folder import read_spec
from aneurysm.cache.layout import CacheLayout, volume_key
from aneurysm.cache.manifest import iter_manifest, read_manifest
from aneurysm.cache.metadata import VolumeMetadata, read_document
from aneurysm.errors import CacheError, CacheNotFoundError
from aneurysm.labels import LABELS
from aneurysm.remote.url import is_url, join_url
from aneurysm.volume.bone import bone_problem

_MOST_BUILDERS: Final = 20


def describe_cache(cache: str | Path) -> dict[str, Any]:
    """
    Return counts over the manifest; of volumes only the metadata of one for each builder are read.

    Raises
    ------
    CacheNotFoundError
        There is no cache at ``cache``.
    CacheError
        Its spec or manifest can't be read.
    """
    with tables_of(cache) as layout:
        spec = read_spec(layout)
        rows = read_manifest(layout.manifest)
        cached = [r for r in rows if r["status"] == "cached"]
        builders = _builders(cache, cached)
    shapes = [[int(n) for n in r["shape"].split("x")] for r in cached]
    return {
        "cache": str(cache),
        "spec": spec.name,
        "spec_version": spec.version,
        "recipe": spec.recipe,
        "digest": spec.digest,
        "spacing_mm": list(spec.spacing_mm),
        "status": dict(Counter(r["status"] for r in rows)),
        "reasons": dict(Counter(r["reason"] for r in rows if r["reason"]).most_common()),
        "modalities": {
            name: {
                "volumes": len(group),
                "lesions": sum(int(r["n_lesions"]) for r in group),
                "gigavoxels": round(sum(_voxels(r) for r in group) / 1e9, 3),
                "megabytes": round(sum(int(r["bytes_out"]) for r in group) / 1e6, 1),
            }
            for name, group in sorted(_by_modality(cached).items())
        },
        "shape_zyx": {
            "smallest": [min(s[k] for s in shapes) for k in range(3)] if shapes else [],
            "largest": [max(s[k] for s in shapes) for k in range(3)] if shapes else [],
        },
        "bytes_in": sum(int(r["bytes_in"]) for r in cached),
        "bytes_out": sum(int(r["bytes_out"]) for r in cached),
        "labels": {k: sum(r[k] == "1" for r in cached) for k in LABELS if any(r[k] for r in cached)},
        "built_by": builders,
        "decisions": dict(Counter(code for r in cached for code in r["detail"].split("; ") if code).most_common()),
    }


def _builders(cache: str | Path, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return who built the volumes, the most frequent first, with the versions that one volume of each names."""
    volumes = Counter(row["built_by"] for row in rows)
    example = {row["built_by"]: row["series_uid"] for row in rows}
    builders = [(name, n, example[name]) for name, n in volumes.most_common(_MOST_BUILDERS)]
    found = _read_metadata(cache, [uid for _, _, uid in builders])
    return [
        {"builder": name, "volumes": n, "versions": {} if isinstance(own, CacheError) else own.built_by}
        for (name, n, _), own in zip(builders, found, strict=True)
    ]


def _read_metadata(cache: str | Path, uids: list[str]) -> list[VolumeMetadata | CacheError]:
    if is_url(cache):
        from aneurysm.cache.local_copy import read_remote_metadata

        return read_remote_metadata(str(cache), uids)
    found: list[VolumeMetadata | CacheError] = []
    for uid in uids:
        try:
            found.append(read_document(CacheLayout(Path(cache)).volume(uid)).own)
        except CacheError as error:
            found.append(error)
    return found


def _by_modality(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["modality"], []).append(row)
    return groups


def _voxels(row: dict[str, str]) -> int:
    z, y, x = (int(n) for n in row["shape"].split("x"))
    return z * y * x


@contextmanager
def tables_of(cache: str | Path) -> Iterator[CacheLayout]:
    """Yield where the tables of a cache are: its folder, or one to which they were fetched."""
    if is_url(cache):
        from aneurysm.cache.local_copy import download_tables

        with download_tables(str(cache)) as folder:
            yield CacheLayout(folder)
    else:
        yield CacheLayout(Path(cache))


def find_volume(cache: str | Path, uid: str) -> Path:
    """
    Return the folder of a volume, or of its local copy.

    Raises
    ------
    CacheNotFoundError
        The series is not in the cache; the message gives the reason if there is one.
    """
    with tables_of(cache) as layout:
        # A UID from the command line is no path: only what has a volume's place is a volume.
        if "/" not in uid and layout.volume(uid).is_dir():
            return layout.volume(uid)
        row = next((r for r in iter_manifest(layout.manifest) if r["series_uid"] == uid), None)
    if row is not None and row["status"] == "cached" and is_url(cache):
        return open_cache(cache).remote[uid].fetch()
    if row is not None:
        raise CacheNotFoundError(f"series {uid} is not cached: {row['status']}, {row['reason']}: {row['detail']}")
    raise CacheNotFoundError(f"there is no series {uid} in {cache}; its manifest.csv lists what there is")


def describe_volume(cache: str | Path, uid: str) -> dict[str, Any]:
    """
    Return the metadata of a volume, with its shape and size; raise as `find_volume` does.

    ``bone_problem`` says why it has no label of bone, and is empty if it has one.
    """
    volume = find_volume(cache, uid)
    with tables_of(cache) as layout:
        row = next((r for r in iter_manifest(layout.manifest) if r["series_uid"] == uid), {})
    own = read_document(volume).own
    problem = "" if own.bone else bone_problem(own.intensity) or "not labelled yet: aneurysm verify --fix adds it"
    files = [p for p in volume.rglob("*") if p.is_file()]
    return {
        "path": join_url(cache, volume_key(uid)) if is_url(cache) else str(volume),
        "shape": [int(n) for n in row.get("shape", "").split("x") if n],
        "files": len(files),
        "bytes": sum(p.stat().st_size for p in files),
        "bone_problem": problem,
        **own.model_dump(mode="json"),
    }
