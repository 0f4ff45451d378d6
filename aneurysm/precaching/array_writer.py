"""CacheWriter: volumes that are arrays, with what is known of them -> a cache like one from DICOM.

A volume is claimed, built, flushed and renamed into place as `aneurysm precache` does it: after a kill those that are
there are complete, the next run resumes, and several processes may write at once. Closing writes the manifest.
"""

from __future__ import annotations

import difflib
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aneurysm.annotations.lesions import Lesion, UnplacedLesion
from aneurysm.cache.folder import patient_secret, prepare_cache
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.metadata import SourceEntry, VolumeMetadata
from aneurysm.cache.tables import write_tables
from aneurysm.cache.writer import write_volume
from aneurysm.dicom.frame import Decision
from aneurysm.errors import DamagedCacheError, DataError, SeriesRejectedError, UsageError
from aneurysm.labels import LABELS, SITES, UNKNOWN_MODALITY, UNKNOWN_VESSEL
from aneurysm.precaching.build_series import patient_key
from aneurysm.precaching.publish import sweep
from aneurysm.precaching.relabel import read_sound_document, replace_annotations, replace_vessels, settle
from aneurysm.precaching.slot import VolumeSlot, open_slot
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.rawdata.folder import safe_source
from aneurysm.remote.url import is_url
from aneurysm.spec import CacheSpec, load_spec
from aneurysm.types import point, triple
from aneurysm.volume.from_array import CT_MODALITIES, KNOWN_MODALITIES, grid_array, grid_mask

_PRESENT = LABELS[-1]


@dataclass(frozen=True)
class _GivenArray:
    """What `CacheWriter.add` was given, checked."""

    uid: str
    values: NDArray[Any]
    affine: NDArray[np.float64]
    modality: str
    lesions: list[tuple[str, Sequence[float]]]
    labels: dict[str, int]
    mask: NDArray[np.uint8] | None

    @cached_property
    def array_hash(self) -> str:
        """Hash of all that decides on the voxels."""
        # Only the kind of modality does.
        kind = "CT" if self.modality in CT_MODALITIES else "MR" if self.modality else ""
        about = f"{kind}\0{self.values.dtype.str}\0{self.values.shape}\0{self.affine.tolist()}\0"
        return _hash_of(about, self.values)

    @cached_property
    def mask_hash(self) -> str:
        """Hash of the vessel mask; empty if there is none."""
        return "" if self.mask is None else _hash_of("", self.mask)


class CacheWriter:
    """
    Puts volumes that are arrays into a cache, from which `aneurysm train` and the other commands read.

        with CacheWriter("cache") as writer:
            writer.add("case-1", voxels, labels={"Aneurysm Present": 1}, patient="Smith")

    Parameters
    ----------
    cache
        Folder, made if absent.
    spec
        Name of a shipped spec, or path of one's own. It decides on the spacing, and on what the values mean: those of
        a modality as in DICOM, those without one by the spec's ``[intensity.array]``.
    overwrite
        Build volumes again that are there; otherwise their voxels stay.

    Raises
    ------
    SpecError
        There is no such spec, or it is not what it should be.
    SpecMismatchError
        The cache is of another spec.
    UsageError
        The folder can't be written, or the key of patients (ANEURYSM_PATIENT_KEY) is not that of the cache.
    """

    def __init__(self, cache: str | Path, *, spec: str | Path = "arrays-u8", overwrite: bool = False) -> None:
        if is_url(cache):
            raise UsageError(f"arrays are written to a folder, not to {cache}; copy the folder there when it is closed")
        self.spec: CacheSpec = load_spec(spec)
        self._layout = CacheLayout(Path(cache).absolute())
        self._overwrite = overwrite
        self._seconds: dict[str, float] = {}
        self._given: set[str] = set()
        with translate_write_errors(self._layout.root):
            prepare_cache(self._layout, self.spec)
            sweep(self._layout)
            self._secret = patient_secret(self._layout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write the manifest of all that is in the cache. What is added afterwards needs another call."""
        with translate_write_errors(self._layout.root):
            sweep(self._layout)
            write_tables(self._layout, self._seconds)

    def add(
        self,
        uid: str,
        voxels: ArrayLike,
        *,
        labels: Mapping[str, int] | None = None,
        patient: str = "",
        modality: str = "",
        spacing_mm: Sequence[float] | None = None,
        affine_lps: ArrayLike | None = None,
        lesions: Iterable[tuple[str, Sequence[float]]] = (),
        vessels: ArrayLike | None = None,
    ) -> Literal["cached", "updated", "skipped", "busy"]:
        """
        Build and publish one volume, or bring what is known of it up to date if it is there with the same voxels.

        Returns ``cached`` or ``updated`` if it did so; ``skipped`` if there was nothing to do; ``busy`` if another
        process has the volume. What a call leaves out is not known any more: give labels, lesions, patient and mask
        each time.

        Parameters
        ----------
        uid
            The volume's name: letters, digits, dots, dashes and underscores, for it becomes a file's.
        voxels
            Three axes of any lengths, of integers or floats. Without ``affine_lps`` they run to Superior, Posterior
            and Left.
        labels
            0 or 1 by name of `aneurysm.labels.LABELS`; those left out are not known, and losses and scores leave them
            out. A site with an aneurysm makes "Aneurysm Present" 1.
        patient
            Who it is; only a keyed hash is stored. Volumes of one patient come into one fold. Empty: another one each.
        modality
            ``CTA`` or ``CT``: values are HU. ``MRA``, ``MRI T2``, ``MRI T1post`` or ``MR``: percentiles of the volume
            set the scale. Empty: the spec's ``[intensity.array]`` says what the values mean.
        spacing_mm
            Of the three axes, in their order. By default the spec's.
        affine_lps
            (4, 4), in place of a spacing: array indices (i, j, k, 1) to (x, y, z, 1) in mm of DICOM's patient space,
            voxel centres. A NIfTI affine is in RAS: negate its first two rows.
        lesions
            Site, and array indices (i, j, k), whole numbers being voxel centres.
        vessels
            A mask of the same shape: integers of the values `aneurysm.labels.VESSEL_VALUES`, 0 where there is no
            vessel; or bools, or 0 and 1 alone, of vessels whose site is unknown.

        Raises
        ------
        UsageError
            The name was given before, or can't be a file's; there is no such label or modality; or the spec does not
            say what the values mean.
        DataError
            The array, mask, affine, a label or lesion is not what it should be, or labels contradict each other; or
            the volume is there with other voxels, and what is known of these is not what it holds.
        DamagedCacheError
            The metadata of the volume that is there are damaged.
        NoSpaceError
            The disk is full.
        """
        started = time.perf_counter()
        if problem := safe_source(uid).problem:
            raise UsageError(f"{problem}: letters, digits, '.', '-' and '_', at most 128, can name a volume")
        if uid in self._given:
            raise UsageError(f"volume {uid} is given twice")
        with open_slot(self._layout.root, "", uid) as slot:
            if slot is None:
                return "busy"
            given = self._given_array(uid, voxels, spacing_mm, affine_lps, modality, lesions, labels or {}, vessels)
            if not self._overwrite and slot.is_done(retry=False):
                status = self._update(given, patient, slot)
                self._given.add(uid)
                return status
            try:
                volume = grid_array(given.values, given.affine, modality, self.spec, given.mask)
            except (DataError, SeriesRejectedError) as error:
                raise DataError(f"volume {uid}: {error}") from error
            metadata = VolumeMetadata(
                affine_lps=volume.affine_lps.tolist(),
                series_uid=uid,
                spec=self.spec.name,
                digest=self.spec.digest,
                source=_source(given),
                decisions=(Decision("cropped", "to the region of the spec"),) if volume.cropped else (),
                **self._annotations(given, patient, volume.affine_lps, volume.voxels.shape),
                intensity=volume.intensity,
                blocks=volume.survey.pack(),
            )
            built = slot.folder / "built.zarr"
            write_volume(
                built, volume.voxels, metadata, storage=self.spec.storage, fill=volume.intensity.fill,
                vessels=volume.vessels, vessels_from=given.mask_hash,
            )  # fmt: skip
            slot.publish(built, replace=self._overwrite)
            self._given.add(uid)
            self._seconds[uid] = round(time.perf_counter() - started, 3)
            return "cached"

    def _given_array(
        self,
        uid: str,
        voxels: ArrayLike,
        spacing_mm: Sequence[float] | None,
        affine_lps: ArrayLike | None,
        modality: str,
        lesions: Iterable[tuple[str, Sequence[float]]],
        labels: Mapping[str, int],
        vessels: ArrayLike | None,
    ) -> _GivenArray:
        values = _checked(uid, voxels)
        affine = self._affine(uid, spacing_mm, affine_lps)
        if modality and modality not in KNOWN_MODALITIES:
            raise UsageError(_unknown(uid, "modality", modality, KNOWN_MODALITIES))
        mask = None if vessels is None else _checked_mask(uid, vessels, values.shape)
        found = list(lesions)
        known = _known_labels(uid, labels, [site for site, _ in found])
        return _GivenArray(uid, values, affine, modality, found, known, mask)

    def _annotations(
        self, given: _GivenArray, patient: str, affine_lps: NDArray[np.float64], shape: Sequence[int]
    ) -> dict[str, Any]:
        """Return the entries of what is known of an array, on the grid of its volume."""
        placed, outside = _placed(given, affine_lps, shape)
        return {
            "modality": given.modality or UNKNOWN_MODALITY,
            "modality_source": "array",
            "labels": given.labels or None,
            "lesions": tuple(placed),
            "unplaced_lesions": tuple(outside),
            "patient_key": patient_key(self._secret, patient),
        }

    def _update(self, given: _GivenArray, patient: str, slot: VolumeSlot) -> Literal["updated", "skipped"]:
        """Bring the annotations of a volume that is there up to what is given."""
        files = slot.files()
        try:
            document = read_sound_document(files)
        except FileNotFoundError:
            return "skipped"  # a record says why there is none
        except DamagedCacheError as error:
            raise DamagedCacheError(f"volume {given.uid}: {error}; overwrite=True builds it again") from error
        document = settle(files, document)
        own = document.own
        new = self._annotations(given, patient, own.affine, files.shape())
        other_mask = given.mask_hash != own.mask_file_hash
        if not other_mask and all(getattr(own, k) == v for k, v in new.items()):
            return "skipped"
        if own.source.array_hash != given.array_hash:
            raise DataError(
                f"volume {given.uid} is there with other voxels, so what is known of these can't be taken for it. "
                "overwrite=True builds it again"
            )
        if other_mask:
            mask = None if given.mask is None else grid_mask(given.mask, given.affine, self.spec)
            replace_vessels(files, document.with_changes(**new), mask, given.mask_hash, self.spec, slot.folder)
        else:
            replace_annotations(files, document, **new)
        return "updated"

    def _affine(
        self, uid: str, spacing_mm: Sequence[float] | None, affine_lps: ArrayLike | None
    ) -> NDArray[np.float64]:
        if affine_lps is not None:
            affine = np.asarray(affine_lps, np.float64)
            if spacing_mm is not None or affine.shape != (4, 4):
                raise DataError(f"volume {uid}: give either a spacing or an affine of 4 x 4, not {affine.shape}")
            return affine
        spacing = np.asarray(self.spec.spacing_mm if spacing_mm is None else spacing_mm, np.float64)
        if spacing.shape != (3,) or not ((spacing > 0) & np.isfinite(spacing)).all():
            raise DataError(f"volume {uid}: a spacing of {spacing.tolist()} mm, expected three numbers above 0")
        affine = np.zeros((4, 4))
        affine[[2, 1, 0], [0, 1, 2]] = spacing  # z, y, x of the array to rows z, y, x of (x, y, z)
        affine[3, 3] = 1
        return affine


def _hash_of(about: str, values: NDArray[Any]) -> str:
    digest = hashlib.sha256(about.encode())
    digest.update(np.ascontiguousarray(values).data)
    return f"sha256:{digest.hexdigest()}"


def _checked(uid: str, voxels: ArrayLike) -> NDArray[Any]:
    values = np.asarray(voxels)
    if values.ndim != 3 or 0 in values.shape:
        raise DataError(f"volume {uid} has the shape {values.shape}, expected three axes: one volume, of one channel")
    if values.dtype.kind not in "buif":
        raise DataError(f"volume {uid} is of {values.dtype}, expected integers or floats")
    # Written so that NaN is beyond it, too.
    if values.dtype.kind == "f" and not (finite := np.abs(values) <= np.finfo(np.float32).max).all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        n = values.size - int(np.count_nonzero(finite))
        raise DataError(f"volume {uid}: {n} voxels are NaN, infinite or beyond 32 bits, the first at {first}")
    return values


def _checked_mask(uid: str, vessels: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    mask = np.asarray(vessels)
    if mask.shape != shape:
        raise DataError(f"volume {uid}: its vessel mask has the shape {mask.shape}, the volume {shape}")
    if mask.dtype.kind not in "bui" or mask.min() < 0 or mask.max() > UNKNOWN_VESSEL:
        raise DataError(
            f"volume {uid}: its vessel mask is of {mask.dtype} from {mask.min()} to {mask.max()}, expected integers "
            f"from 0 to {UNKNOWN_VESSEL}, which say what vessel it is (aneurysm.labels.VESSEL_VALUES), or bools"
        )
    values = mask.astype(np.uint8)
    # A mask of 0 and 1 does not say which vessel: 1 would be one of them.
    return np.where(values == 1, np.uint8(UNKNOWN_VESSEL), values) if values.max() <= 1 else values


def _known_labels(uid: str, labels: Mapping[str, int], lesion_sites: Sequence[str]) -> dict[str, int]:
    """Return the labels that are known, in their order, with those that follow from others."""
    for name, value in labels.items():
        if name not in LABELS:
            raise UsageError(_unknown(uid, "label", name, LABELS))
        if not isinstance(value, int | np.integer | np.bool_) or value not in (0, 1):
            raise DataError(f"volume {uid}: {name} is {value!r}, expected 0 or 1. Leave it out if it is not known")
    for site in lesion_sites:
        if site not in SITES:
            raise UsageError(_unknown(uid, "site", site, SITES))
        if labels.get(site, 1) == 0:
            raise DataError(f"volume {uid} has a lesion at {site}, whose label is 0")
    sites = [site for site in SITES if labels.get(site) == 1 or site in lesion_sites]
    if sites and labels.get(_PRESENT) == 0:
        raise DataError(f"volume {uid}: {sites[0]} is 1, but {_PRESENT} is 0")
    found = {**labels, **dict.fromkeys(sites, 1), **({_PRESENT: 1} if sites else {})}
    return {name: int(found[name]) for name in LABELS if name in found}


def _placed(
    given: _GivenArray, affine_lps: NDArray[np.float64], shape: Sequence[int]
) -> tuple[list[Lesion], list[UnplacedLesion]]:
    """Return the lesions in a volume of ``shape`` (z, y, x) at ``affine_lps``, and those that a region left out."""
    placed, outside = [], []
    uid, size, to_voxel = given.uid, given.values.shape, np.linalg.inv(affine_lps)
    for row, (site, index) in enumerate(given.lesions):
        at = np.asarray(index, np.float64)
        # Written so that NaN is outside, too.
        if at.shape != (3,) or not ((at >= -0.5) & (at <= np.array(size) - 0.5)).all():
            raise DataError(f"volume {uid}: the lesion {row} is at {at.tolist()}, outside an array of {size}")
        x, y, z = (given.affine @ [*at, 1.0])[:3].tolist()
        inner = (to_voxel @ [x, y, z, 1.0])[:3]
        if np.any(inner < -0.5 - 1e-6) or np.any(inner > np.array(shape) - 0.5 + 1e-6):
            detail = f"voxel {inner.round(1).tolist()} of {tuple(shape)}"
            outside.append(UnplacedLesion(site, "outside_volume", detail, row))
            continue
        placed.append(Lesion.at(site, inner.tolist(), (x, y, z), row))
    return placed, outside


def _source(given: _GivenArray) -> SourceEntry:
    """Return what the metadata say of an array in place of DICOM files, empty where it has no such thing."""
    values, affine_lps = given.values, given.affine
    steps = np.linalg.norm(affine_lps[:3, :3], axis=0)
    return SourceEntry(
        array_hash=given.array_hash,
        shape=triple(values.shape),
        spacing_mm=point(round(float(v), 6) for v in steps),
        orientation=tuple(round(float(v), 6) for v in (affine_lps[:3, :3] / steps).T.ravel()),
        plane="",
        tilt_deg=0.0,
        other_parts=(),
        transfer_syntaxes=(),
        files=0,
        frames=0,
        bytes=values.nbytes,
        acquisition={},
    )


def _unknown(uid: str, kind: str, name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"volume {uid}: there is no {kind} {name!r}. {hint}There are {', '.join(known)}"
