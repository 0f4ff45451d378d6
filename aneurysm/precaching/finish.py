"""merge(): the work of many tasks -> one manifest, and what is still to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aneurysm.cache.folder import read_spec
from aneurysm.cache.manifest import ManifestRow
from aneurysm.precaching.agreed_plan import remove_deals
from aneurysm.precaching.publish import sweep
from aneurysm.precaching.remote_destination import open_destination
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.rawdata.bucket import open_data


@dataclass(frozen=True)
class Merged:
    """
    Counts of the manifest's rows; UIDs of series that are in the data, and have no row.

    ``strange`` are volumes that are not of the cache's ``digest``, by UID the digest of each.
    """

    cached: int
    not_cached: int
    missing: list[str]
    digest: str
    strange: dict[str, str]


def merge(cache: str | Path, data: str | Path | None = None, *, workers: int = 1) -> Merged:
    """
    Write the manifest of what is on disk, and compare it with the series in ``data``, if that is given.

    Raises
    ------
    DataError
        There is no such data folder, or nothing in it.
    NoSpaceError
        The disk is full.
    CacheError
        There is no cache, its spec can't be read, or it can't be written.
    """
    with open_destination(cache) as place:
        place.refresh()
        digest = read_spec(place.layout).digest
        missing = {s.uid for s in open_data(data).find_series(workers).sources} if data else set()
        strange: dict[str, str] = {}

        def look(row: ManifestRow) -> None:
            missing.discard(row["series_uid"])
            if row["status"] == "cached" and row["digest"] != digest:
                strange[row["series_uid"]] = row["digest"]

        with translate_write_errors(place.layout.root):
            sweep(place.layout)
            counts = place.write_tables({}, on_row=look)
        if data and not missing:
            remove_deals(place)
    return Merged(counts.cached, counts.not_cached, sorted(missing), digest, strange)
