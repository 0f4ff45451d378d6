"""
Draws -> Batch: each draw becomes a place, the place voxels, and the series' lesions targets.

Of a view of pictures a draw is a series: its place is the whole volume, and its targets are the series' labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from aneurysm.cache.cache import Cache
from aneurysm.cache.volume import CachedVolume
from aneurysm.errors import CacheError, DamagedCacheError, LoaderError, NoSpaceError, StoreError
from aneurysm.labels import LABELS, UNKNOWN
from aneurysm.patches.batch import Batch
from aneurysm.patches.plan import PlannedPatch, Sampling
from aneurysm.patches.randomness import Stream, augmentation_seed, generator
from aneurysm.patches.samplers import PatchLocation, block_start, lesion_start, uniform_start
from aneurysm.patches.targets import BatchLesions, inner_places, patch_targets
from aneurysm.patches.views.pictures import read_pictures
from aneurysm.patches.views.view import Box, View
from aneurysm.types import Triple
from aneurysm.volume.intensity import Intensity

_REPLACEMENTS: Final = 10
"""So many volumes are tried for one sample before the cache is given up."""
_PRESENT: Final = len(LABELS) - 1


class _Patch(NamedTuple):
    """What is known of a patch beside its voxels."""

    location: PatchLocation
    uid: str
    intensity: Intensity
    fill: int
    has_vessels: bool


class PatchDataset(Dataset[Batch]):
    """
    Reads samples of a view. It holds the cache's tables, no open file; it may be pickled, forked, used by threads.

    Parameters
    ----------
    cache
        To read from.
    volumes
        Indices of the series that may replace a damaged one.
    view
        What a sample is.
    sampling
        For the margin about lesions.
    seed
        Of the places.
    vessels
        Read vessel masks, too.
    """

    def __init__(
        self,
        cache: Cache,
        volumes: Sequence[int],
        view: View,
        sampling: Sampling,
        seed: int,
        *,
        vessels: bool = False,
    ) -> None:
        self.cache, self.volumes, self.view, self.seed, self.vessels = cache, volumes, view, seed, vessels
        z, y, x = (round(sampling.lesion_margin_mm / s) for s in cache.spec.spacing_mm)
        self._margin: Triple = (z, y, x)
        self._dtype = np.dtype(cache.spec.storage.dtype)

    def locate(self, draw: PlannedPatch, volume: CachedVolume | None = None) -> PatchLocation:
        """
        Return where the patch of ``draw`` lies: a matter of the draw, the seed, and the volume's metadata.

        ``volume`` spares looking it up, if it is at hand.

        Raises
        ------
        CacheError
            The volume's metadata is missing or damaged.
        """
        z, y, x = self.cache.shapes[draw.volume].tolist()
        shape: Triple = (z, y, x)
        if self.view.scope == "series":
            return PatchLocation(draw.volume, (0, 0, 0), shape, "series")
        rng, size = self._rng(draw), self.view.shape
        match draw.kind:
            case "lesion":
                lesion = self.cache.lesion_zyx[draw.lesion]
                start = lesion_start(rng, shape, size, lesion, self._margin)
            case "uniform":
                start = uniform_start(rng, shape, size)
            case _:
                blocks = (volume or self.cache[draw.volume]).blocks
                # A series may have no block that looks like a vessel.
                chosen = blocks.vessels if draw.kind == "vessel" and blocks.vessels.any() else blocks.head
                start = block_start(rng, shape, size, blocks, chosen)
        return PatchLocation(draw.volume, start, size, draw.kind)

    def _rng(self, draw: PlannedPatch) -> np.random.Generator:
        return generator(self.seed, draw.epoch, draw.index, Stream.PLACE)

    def __getitem__(self, draw: PlannedPatch) -> Batch:
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[PlannedPatch]) -> Batch:
        """
        Return the patches of ``draws`` in one batch.

        A volume that can't be read is replaced: the sample comes from another series then, and ``damaged`` of the
        batch says so.

        Raises
        ------
        LoaderError
            Replacement after replacement can't be read either; or an object store fails, or the disk is full.
        """
        image = _empty((len(draws), self.view.channels, *self.view.shape), self._dtype)
        vessels = _empty((len(draws), 1, *self.view.shape), np.dtype(np.uint8)) if self.vessels else None
        damaged: list[str] = []
        read = [
            self._read(draw, image[i].numpy(), None if vessels is None else vessels[i, 0].numpy(), damaged)
            for i, draw in enumerate(draws)
        ]
        return self._batch(draws, read, image, vessels, damaged)

    def _read(
        self, draw: PlannedPatch, image: NDArray[Any], vessels: NDArray[Any] | None, damaged: list[str]
    ) -> _Patch:
        for attempt in range(_REPLACEMENTS):
            volume = self.cache[draw.volume]
            try:
                if volume.shape != tuple(self.cache.shapes[draw.volume].tolist()):
                    raise DamagedCacheError("it was built again since the run began, and has another shape")
                location = self.locate(draw, volume)
                if isinstance(self.view, Box):
                    volume.read(location.start, location.shape, image[0])
                else:
                    read_pictures(volume, self.view.choose(volume, self._rng(draw)), image)
                if vessels is not None and volume.has_vessels:
                    volume.read_vessels(location.start, location.shape, vessels)
                elif vessels is not None:
                    vessels.fill(0)
                # Now: it may be gone by the time the batch is put together.
                intensity = volume.metadata.intensity
                patch = _Patch(location, volume.uid, intensity, volume.fill, volume.has_vessels)
            except (StoreError, NoSpaceError) as error:
                raise LoaderError(str(error)) from error  # the next volume would fare no better
            except (CacheError, OSError, LookupError, TypeError) as error:
                damaged.append(f"{volume.uid}: {error}")
                rng = generator(self.seed, draw.epoch, draw.index * _REPLACEMENTS + attempt, Stream.REPLACE)
                draw = PlannedPatch(draw.epoch, draw.index, int(rng.choice(self.volumes)), "foreground", -1)
            else:
                return patch
        raise LoaderError(f"{_REPLACEMENTS} volumes one after the other can't be read; the last: {damaged[-1]}")

    def _batch(
        self,
        draws: Sequence[PlannedPatch],
        patches: Sequence[_Patch],
        image: torch.Tensor,
        vessels: torch.Tensor | None,
        damaged: list[str],
    ) -> Batch:
        cache, n = self.cache, len(draws)
        intensity, locations = [p.intensity for p in patches], [p.location for p in patches]
        number = np.array([p.volume for p in locations])
        start = np.array([p.start for p in locations], np.int64).reshape(n, 3)
        # Of pictures no lesion has a place: their labels are those of the series.
        known = number.tolist() if self.view.scope == "patch" else []
        rows = [np.arange(0), *(np.arange(s.start, s.stop) for s in map(cache.lesions_of, known))]
        sample = np.repeat(np.arange(len(known)), [len(r) for r in rows[1:]])
        row = np.concatenate(rows)
        first, places = start[sample].astype(np.float32), cache.lesion_zyx[row]
        inner = inner_places(places, cache.shapes[number[sample]], cache.spec.spacing_mm)
        lesions = BatchLesions(
            sample=torch.from_numpy(sample),
            site=torch.from_numpy(cache.lesion_site[row].astype(np.int64)),
            zyx=torch.from_numpy(places - first),
            inner=torch.from_numpy(inner - first),
        )
        unknown = torch.from_numpy(np.stack([self._unknown(v) for v in number.tolist()]))
        certain = torch.from_numpy(np.stack([self._certain(p) for p in locations]))
        targets, ignore = patch_targets(lesions, unknown, certain, self.view.shape, cache.spec.spacing_mm)
        seeds = [augmentation_seed(self.seed, d.epoch, d.index) for d in draws]

        def each(values: list[Any]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32)

        return Batch(
            image=image,
            scale=each([i.scale for i in intensity]),
            offset=each([i.offset for i in intensity]),
            window=each([i.window for i in intensity]),
            fill=each([p.fill for p in patches]),
            is_ct=torch.tensor([i.unit == "HU" for i in intensity]),
            vessels=vessels,
            has_vessels=torch.tensor([p.has_vessels for p in patches]),
            targets=targets,
            ignore=ignore,
            unknown=unknown,
            certain=certain,
            lesions=lesions,
            spacing_mm=cache.spec.spacing_mm,
            seeds=torch.tensor(seeds),
            index=torch.tensor([d.index for d in draws]),
            volume=torch.from_numpy(number.astype(np.int64)),
            start=torch.from_numpy(start),
            series_uid=tuple(p.uid for p in patches),
            why=tuple(p.why for p in locations),
            damaged=tuple(damaged),
            planes=self.view.planes,
        )

    def _unknown(self, volume: int) -> NDArray[np.bool_]:
        """Return for the 14 labels whether no patch of the series can be said to be without."""
        if self.view.scope == "series":
            return np.asarray(self.cache.labels[volume] == UNKNOWN)
        sites, labels = self.cache.unlocated[volume], self.cache.labels[volume]
        # Without any aneurysm there is none in any patch, also where nothing is said of the sites.
        return np.append(sites, labels[_PRESENT] != 0 and (sites.any() or _siteless(labels)))

    def _certain(self, location: PatchLocation) -> NDArray[np.bool_]:
        """Return for the 14 labels whether an aneurysm without a place is in the patch, since all the volume is."""
        if location.why == "series":
            return np.asarray(self.cache.labels[location.volume] == 1)
        found = np.zeros(len(LABELS), bool)
        if location.holds(self.cache.shapes[location.volume]):
            labels = self.cache.labels[location.volume]
            found[:_PRESENT] = self.cache.unlocated[location.volume] & (labels[:_PRESENT] == 1)
            found[_PRESENT] = labels[_PRESENT] == 1 and (found.any() or _siteless(labels))
        return found


def _siteless(labels: NDArray[np.uint8]) -> bool:
    """Return True if there is an aneurysm, and no site is named."""
    return bool(labels[_PRESENT] == 1 and not (labels[:_PRESENT] == 1).any())


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
    """Return an array to be filled: in a worker process in shared memory, which spares its copy on the way out."""
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, dtype))
    # As torch's own default_collate does it; there is no public way.
    shared: Any = torch.UntypedStorage._new_shared  # noqa: SLF001
    bytes_ = torch.empty(0, dtype=torch.uint8).set_(shared(int(np.prod(shape)) * dtype.itemsize))
    return bytes_.view(torch.from_numpy(np.empty(0, dtype)).dtype).view(shape)
