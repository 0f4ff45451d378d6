"""SeriesPath -> ReadSeries: one series in memory on the grid of a cache spec, from DICOM or from a cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aneurysm.cache.volume import CachedVolume
from aneurysm.dicom.frame import Decision
from aneurysm.dicom.series import read_series
from aneurysm.dicom.stack import Stack
from aneurysm.errors import DamagedCacheError, Reason, SeriesRejectedError, SpecMismatchError
from aneurysm.inference.series_paths import SeriesPath
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.spec import CacheSpec
from aneurysm.volume.head_and_vessels import survey
from aneurysm.volume.volume import assemble
from aneurysm.windows.grid import MemoryVolume


@dataclass(frozen=True)
class ReadSeries:
    """
    A volume, the frames that it was made of, and what was decided on the way.

    ``stack`` is None, and ``decisions`` are none, of a cached volume: it does not know its frames.
    """

    volume: MemoryVolume
    stack: Stack | None
    decisions: list[Decision]


def read_path(path: SeriesPath, spec: CacheSpec) -> ReadSeries:
    """
    Read one series into memory: the voxels of a DICOM series are those that `aneurysm precache` stores.

    Raises
    ------
    SeriesRejectedError
        The series can't become a volume.
    CacheError
        The cached volume is damaged, or of another spec.
    """
    if isinstance(path, CachedVolume):
        return _read_cached(path, spec)
    return _read_dicom(path, spec)


def _read_dicom(source: SeriesSource, spec: CacheSpec) -> ReadSeries:
    source.check_complete()
    with source.brought() as local:
        files = local.list_files()
        if not files:
            raise SeriesRejectedError(Reason.NO_FILES, "the folder of the series is empty")
        volume = assemble(read_series(source.uid, files), spec)
    # Windows ask for the head alone.
    blocks = survey(volume.voxels, volume.intensity, spec.spacing_mm, vessels=False).blocks("")
    attributes = {"intensity": volume.intensity.as_metadata()}
    fill = volume.intensity.fill
    held = MemoryVolume(source.uid, volume.voxels, fill, volume.affine_lps, blocks, attributes)
    return ReadSeries(held, volume.stack, list(dict.fromkeys(volume.decisions)))


def _read_cached(volume: CachedVolume, spec: CacheSpec) -> ReadSeries:
    if (digest := volume.attributes.get("digest")) != spec.digest:
        cache = volume.name.removesuffix(f"/volumes/{volume.uid}.zarr")
        raise SpecMismatchError(
            f"{cache} has volumes of digest {digest}, the checkpoint wants {spec.digest} (spec {spec.name!r}). "
            "Give the DICOM series themselves, or a cache of that spec"
        )
    intensity = volume.attributes["intensity"]
    low, high = intensity["window"]
    if not (np.isfinite([intensity["scale"], intensity["offset"], low, high]).all() and low < high):
        # A model has a confident answer to voxels that are all infinite, too: they are clipped to the window.
        raise DamagedCacheError(f"volume {volume.uid}: its intensities are not finite. Run aneurysm verify")
    voxels = volume.read((0, 0, 0), volume.shape)
    held = MemoryVolume(volume.uid, voxels, volume.fill, volume.affine_lps, volume.blocks, volume.attributes)
    return ReadSeries(held, None, [])
