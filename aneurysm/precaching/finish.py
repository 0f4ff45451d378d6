"""merge(): the work of many tasks -> one manifest, and what is still to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aneurysm.cache.folder import read_spec
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
        sources = open_data(data).find_series(workers).sources if data else []
        with translate_write_errors(place.layout.root):
            sweep(place.layout)
            rows = place.write_manifest({})
        known = {row["series_uid"] for row in rows}
        missing = [s.uid for s in sources if s.uid not in known]
        if sources and not missing:
            remove_deals(place)
    volumes = {row["series_uid"]: row["digest"] for row in rows if row["status"] == "cached"}
    strange = {uid: of for uid, of in volumes.items() if of != digest}
    return Merged(len(volumes), len(rows) - len(volumes), missing, digest, strange)
