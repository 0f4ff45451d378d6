"""SeriesPath -> ReadSeries or Failure: series in memory on the grid of their cache spec, read ahead of their use.

DICOM is read in processes of its own, as precaching does it: a decoder that crashes, the kernel's out-of-memory killer,
or a file that hangs beyond the limit of time then costs one series and not the command. Cached volumes, whose decoder
checks what it is given, are read in this process, and need no copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from aneurysm.cache.layout import volume_key
from aneurysm.cache.volume import CachedVolume
from aneurysm.dicom.frame import Decision
from aneurysm.dicom.stack import Stack
from aneurysm.errors import (
    FAILURES,
    DamagedCacheError,
    Reason,
    SpecMismatchError,
    StoreError,
    reason_of,
)
from aneurysm.inference.routing import Routing
from aneurysm.inference.series_paths import SeriesPath
from aneurysm.processes.children import NO_LIMITS, Children, Limits, LostError
from aneurysm.processes.threads import ahead
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.spec import CacheSpec
from aneurysm.volume.modality import inferred_modality
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


@dataclass(frozen=True)
class Failure:
    """
    A series without a prediction: ``rejected`` for what it is, or ``failed`` for what happened here.

    Attributes
    ----------
    probabilities
        By label: base rates to fall back on, if those were asked for; see `aneurysm.inference.calibration.base_rates`.
    """

    series_uid: str
    status: Literal["rejected", "failed"]
    reason: Reason
    detail: str
    probabilities: dict[str, float] | None = None


def failure(series_uid: str, reason: Reason, detail: str) -> Failure:
    """Return a `Failure` with the status that follows from its reason."""
    return Failure(series_uid, "failed" if reason in FAILURES else "rejected", reason, detail)


class SeriesReader:
    """
    Reads series for any number of threads.

    Parameters
    ----------
    spec
        Of the volumes, or which one by their modality.
    limits
        What reading one DICOM series may take.
    """

    def __init__(self, spec: CacheSpec | Routing, limits: Limits = NO_LIMITS) -> None:
        self._spec, self._limits = spec, limits
        self._children = Children()

    def read(self, path: SeriesPath) -> ReadSeries | Failure:
        """Read one series as `read_or_fail` does; DICOM in a process, and once more if that is lost."""
        if isinstance(path, CachedVolume):
            return read_or_fail(path, self._spec)
        try:
            return self._read_in_process(path)
        except LostError:
            # In all likelihood for what the series is, but it may have been for what else the machine did.
            try:
                return self._read_in_process(path)
            except LostError as error:
                return failure(path.uid, error.reason, f"{error.detail} (tried twice)")

    def stop(self) -> None:
        """End the processes."""
        self._children.stop()

    def _read_in_process(self, path: SeriesPath) -> ReadSeries | Failure:
        return self._children.run(read_or_fail, path, self._spec, limits=self._limits)


def read_ahead(
    paths: Iterable[SeriesPath], spec: CacheSpec | Routing, workers: int, limits: Limits = NO_LIMITS
) -> Iterator[ReadSeries | Failure]:
    """
    Yield each series, or why it can't be read; ``workers`` are in work while the caller has the one before.

    A DICOM series that takes its process with it, or more than ``limits``, is tried once more.

    Raises
    ------
    SpecMismatchError
        A cached volume is of another spec.
    StoreError
        An object store fails.
    """
    reader = SeriesReader(spec, limits)
    return ahead(reader.read, paths, workers, end=reader.stop)


def read_or_fail(path: SeriesPath, spec: CacheSpec | Routing) -> ReadSeries | Failure:
    """
    Read one series; whatever is wrong with it comes back as a `Failure`.

    Raises
    ------
    SpecMismatchError
        A cached volume is of another spec: that is wrong with all of them.
    StoreError
        An object store fails: likewise.
    """
    try:
        return read_path(path, spec)
    except (SpecMismatchError, StoreError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one series, the others are predicted
        return failure(path.uid, *reason_of(error))


def read_path(path: SeriesPath, spec: CacheSpec | Routing) -> ReadSeries:
    """
    Read one series into memory: the voxels of a DICOM series are those that `aneurysm precache` stores.

    Raises
    ------
    SeriesRejectedError
        The series can't become a volume, or no model answers for its modality.
    CacheError
        The cached volume is damaged, or of another spec; or the spec is of another recipe, and the series is DICOM.
    """
    if isinstance(path, CachedVolume):
        return _read_cached(path, spec)
    return _read_dicom(path, spec)


def _spec_for(modality: str, spec: CacheSpec | Routing) -> CacheSpec:
    return spec.spec(modality) if isinstance(spec, Routing) else spec


def _read_dicom(source: SeriesSource, spec: CacheSpec | Routing) -> ReadSeries:
    for one in [route.spec for route in spec.routes] if isinstance(spec, Routing) else [spec]:
        if what := one.mismatch():
            raise SpecMismatchError(
                f"DICOM can't be read as the checkpoint's training cache was. Of its spec: {what}. Predict with the "
                "release that trained it, or volumes of such a cache; or train again on a cache of this one"
            )
    source.check_complete()
    with source.local_copy() as local:
        series = local.read_headers()
        # Before pixels are read: models of several modalities may take volumes of several specs.
        modality = inferred_modality(series)
        volume = assemble(series, _spec_for(modality, spec))
    place, intensity = (volume.affine_lps, volume.head_blocks), volume.intensity
    held = MemoryVolume(source.uid, volume.voxels, intensity.fill, *place, intensity, modality)
    return ReadSeries(held, volume.stack, list(dict.fromkeys(volume.decisions)))


def _read_cached(volume: CachedVolume, spec: CacheSpec | Routing) -> ReadSeries:
    modality = volume.metadata.modality
    spec = _spec_for(modality, spec)
    if (digest := volume.metadata.digest) != spec.digest:
        cache = volume.name.removesuffix(f"/{volume_key(volume.uid)}")
        raise SpecMismatchError(
            f"{cache} has volumes of digest {digest}, the checkpoint wants {spec.digest} (spec {spec.name!r}). "
            "Give the DICOM series themselves, or a cache of that spec"
        )
    intensity = volume.intensity
    low, high = intensity.window
    if not (np.isfinite([intensity.scale, intensity.offset, low, high]).all() and low < high):
        # A model has a confident answer to voxels that are all infinite, too: they are clipped to the window.
        raise DamagedCacheError(f"volume {volume.uid}: its intensities are not finite. Run aneurysm verify")
    voxels = volume.read((0, 0, 0), volume.shape)
    held = MemoryVolume(
        volume.uid, voxels, volume.fill, volume.affine_lps, volume.blocks, intensity, modality, volume.survey
    )
    return ReadSeries(held, None, [])
