"""Cache, Predictions -> how each series was acquired, and where its lesions are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aneurysm.cache.cache import Cache, open_cache
from aneurysm.cache.metadata import VolumeMetadata
from aneurysm.csv_table import read_csv_rows
from aneurysm.errors import CacheError, CacheNotFoundError, DataError, SpecMismatchError
from aneurysm.labels import SITES
from aneurysm.report.froc import Localisation
from aneurysm.report.run import Run
from aneurysm.report.run_tables import Candidates, Predictions

NOT_KNOWN = "not known"
THICKNESS_MM = (1.0, 3.0)
"""Edges of the classes of slice thickness."""
_TRUTH_COLUMNS = ["series_uid", "location", "x_mm", "y_mm", "z_mm", "radius_mm"]
_SAME_LESION_MM = 30.0


@dataclass(frozen=True)
class AcquisitionFacts:
    """(n,) names of classes: plane, and slice thickness (SliceThickness, or else the distance of slices)."""

    planes: NDArray[np.str_]
    thickness: NDArray[np.str_]


@dataclass(frozen=True)
class Lesions:
    """
    Lesions of the series: m that have a place, and k that lie beyond the cached volume.

    Attributes
    ----------
    series
        (m,) int64: index into the predictions.
    sites, lps_mm, diameter_mm
        (m,), (m, 3), (m,): NaN where a diameter is not known.
    settled
        (n,): series of which the place of every lesion is known, so that a candidate elsewhere is false.
    outside_series, outside_sites
        (k,): of those beyond, which no candidate can find.
    """

    series: NDArray[np.int64]
    sites: NDArray[np.int64]
    lps_mm: NDArray[np.float64]
    diameter_mm: NDArray[np.float64]
    settled: NDArray[np.bool_]
    outside_series: NDArray[np.int64]
    outside_sites: NDArray[np.int64]

    def of(self, series: int) -> NDArray[np.int64]:
        """Return the lesions of a series."""
        return np.flatnonzero(self.series == series)


def open_runs_cache(
    runs: Sequence[Run], path: str | Path | None, local_cache: str | None = None, local_cache_gb: float | None = None
) -> tuple[Cache | None, str]:
    """
    Return the cache of the runs, or None and why there is none.

    Parameters
    ----------
    path
        The cache, wherever the runs' configurations say it is.
    local_cache, local_cache_gb
        See `open_cache`.

    Raises
    ------
    SpecMismatchError
        The runs were trained on caches of different specs, or on one of another spec than ``path``.
    CacheError
        ``path`` is none, or a cache is damaged.
    DataError
        A series predicted is not in it.
    """
    places = [path] if path is not None else list(dict.fromkeys(run.cache for run in runs if run.cache is not None))
    opened, missing = [], ""
    for place in places:
        try:
            opened.append(open_cache(place, local_cache=local_cache, local_cache_gb=local_cache_gb))
        except CacheNotFoundError:
            if path is not None:
                raise
            missing = f"the cache of the configuration, {place}, is not there; say with --cache where it is"
    if not opened:
        return None, missing or "the runs' configurations name no cache; say with --cache where it is"
    first = opened[0]
    for cache in opened[1:]:
        if cache.spec.digest != first.spec.digest:
            raise SpecMismatchError(
                f"the runs were trained on caches of different specs: {first.root} is of {first.spec.name!r} (digest "
                f"{first.spec.digest}), {cache.root} of {cache.spec.name!r} ({cache.spec.digest})"
            )
    cached = set(first.uids)
    for run in runs:
        if run.digest not in (None, first.spec.digest):
            raise SpecMismatchError(
                f"{first.root} is of spec {first.spec.name!r} (digest {first.spec.digest}), the predictions of "
                f"{run.root} are of a cache of digest {run.digest}"
            )
        if strange := [uid for uid in run.predictions.uids.tolist() if uid not in cached]:
            raise DataError(
                f"{run.root} predicted {len(strange)} series that are not in {first.root}: {strange[0]} ..."
            )
    return first, ""


def acquisitions(cache: Cache, predictions: Predictions) -> AcquisitionFacts:
    """Read plane and slice thickness from the volumes' metadata; a damaged volume's are not known."""
    planes, thickness = [], []
    low, high = THICKNESS_MM
    for metadata in _metadata(cache, predictions.uids.tolist()):
        if isinstance(metadata, CacheError):
            planes.append(NOT_KNOWN)
            thickness.append(NOT_KNOWN)
        else:
            source = metadata.source
            planes.append(source.plane or NOT_KNOWN)
            value = source.acquisition.get("SliceThickness")
            if not isinstance(value, int | float) or value <= 0:
                value = source.spacing_mm[0]
            classes = (f"0 to {low:g} mm", f"{low:g} to {high:g} mm", f"{high:g} mm and more")
            thickness.append(classes[int(np.digitize(value, THICKNESS_MM))])
    return AcquisitionFacts(np.array(planes), np.array(thickness))


def lesions(cache: Cache, predictions: Predictions, truth: Path | None) -> Lesions:
    """
    Return the lesions of the predicted series.

    Parameters
    ----------
    truth
        A table with the lesions' places and radii, as the phantom's truth.csv; None: no diameter is known.

    Raises
    ------
    DataError
        The table can't be read or lacks a column.
    CacheError
        A volume with lesions is damaged.
    """
    volume_of = {uid: i for i, uid in enumerate(cache.uids)}
    series, sites, places = [], [], []
    settled = np.zeros(len(predictions), bool)
    rows_of = {}
    for i, uid in enumerate(predictions.uids.tolist()):
        volume = volume_of[uid]
        settled[i] = not cache.unlocated[volume].any()
        rows = cache.lesions_of(volume)
        if rows.start < rows.stop:
            rows_of[i] = rows
    known = _metadata(cache, predictions.uids[list(rows_of)].tolist()) if rows_of else []
    for (i, rows), metadata in zip(rows_of.items(), known, strict=True):
        if isinstance(metadata, CacheError):
            raise metadata
        affine = metadata.affine
        series += [i] * (rows.stop - rows.start)
        sites += cache.lesion_site[rows].tolist()
        places += (cache.lesion_zyx[rows].astype(np.float64) @ affine[:3, :3].T + affine[:3, 3]).tolist()
    lps_mm = np.array(places, np.float64).reshape(-1, 3)
    of_series, of_site = np.array(series, np.int64), np.array(sites, np.int64)
    diameter = np.full(len(lps_mm), np.nan)
    if truth is not None:
        diameter = _diameters(truth, predictions.uids[of_series], of_site, lps_mm)
    at = {volume_of[uid]: i for i, uid in enumerate(predictions.uids.tolist())}
    beyond = np.array([(at[v], site) for v, site in cache.outside.tolist() if v in at], np.int64).reshape(-1, 2)
    return Lesions(of_series, of_site, lps_mm, diameter, settled, beyond[:, 0], beyond[:, 1])


def localisation(predictions: Predictions, located: Lesions, candidates: Candidates) -> Localisation:
    """
    Return what can be compared: candidates and lesions of the series in which every lesion's place is known.

    Lesions beyond the cached volume are there, infinitely far away: the model missed them, whatever the reason.
    """
    number = {uid: i for i, uid in enumerate(predictions.uids.tolist())}
    scan = np.array([number[uid] for uid in candidates.uids.tolist()], np.int64)
    counts, series = located.settled[scan], np.concatenate([located.series, located.outside_series])
    sites, lesion_counts = np.concatenate([located.sites, located.outside_sites]), located.settled[series]
    far, unknown = np.full((len(located.outside_series), 3), np.inf), np.full(len(located.outside_series), np.nan)
    return Localisation(
        np.flatnonzero(located.settled),
        scan[counts],
        candidates.sites[counts],
        candidates.probabilities[counts],
        candidates.lps_mm[counts],
        series[lesion_counts],
        sites[lesion_counts],
        np.concatenate([located.lps_mm, far])[lesion_counts],
        np.concatenate([located.diameter_mm, unknown])[lesion_counts],
    )


def _metadata(cache: Cache, uids: Sequence[str]) -> list[VolumeMetadata | CacheError]:
    """Return what volumes say of themselves, or what is wrong with them; of a remote cache no voxels are downloaded."""
    if isinstance(cache.root, str):
        from aneurysm.cache.local_copy import read_remote_metadata

        return read_remote_metadata(cache.root, uids)
    found: list[VolumeMetadata | CacheError] = []
    for uid in uids:
        try:
            found.append(cache.volume(uid).metadata)
        except CacheError as error:
            found.append(error)
    return found


def _diameters(
    path: Path, uids: NDArray[np.str_], sites: NDArray[np.int64], lps_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    try:
        table = list(read_csv_rows(path, _TRUTH_COLUMNS))
    except OSError as error:
        raise DataError(f"the table of lesions' sizes {path} can't be read: {error.strerror or error}") from error
    rows: dict[tuple[str, str], list[tuple[NDArray[np.float64], float]]] = {}
    for row in table:
        cells = [row[name] for name in _TRUTH_COLUMNS]
        if all(cells):
            try:
                values = np.array([float(cell) for cell in cells[2:]])
            except ValueError as error:
                raise DataError(f"{path} line {row.line}: a place or radius is no number") from error
            rows.setdefault((cells[0], cells[1]), []).append((values[:3], float(values[3])))
    diameters = np.full(len(uids), np.nan)
    for i, (uid, site) in enumerate(zip(uids.tolist(), sites, strict=True)):
        near = [(float(np.linalg.norm(p - lps_mm[i])), r) for p, r in rows.get((uid, SITES[site]), [])]
        # Two lesions of one site: the nearer is meant. Far off, the table is of other data.
        if near and min(near)[0] <= _SAME_LESION_MM:
            diameters[i] = 2 * min(near)[1]
    return diameters
