"""Cache -> Draws: the series, the sampler and the lesion of each sample of an epoch. Nothing is read for it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from aneurysm.cache.cache import Cache
from aneurysm.errors import SamplingError
from aneurysm.labels import LABELS
from aneurysm.patches.randomness import Stream, generator
from aneurysm.patches.samplers import PatchKind
from aneurysm.patches.views.view import Scope

Balance = Literal["natural", "label", "stratified"]
_PRESENT: Final = len(LABELS) - 1


@dataclass(frozen=True)
class Sampling:
    """
    What patches an epoch is made of.

    Attributes
    ----------
    lesion, vessel, foreground, uniform
        Weights of the samplers: about a lesion; about a vessel; about the head; anywhere.
    balance
        ``natural``: every series equally often, so that labels and modalities occur as they do in the data. ``label``:
        every site equally often among patches about lesions, series with an aneurysm as often as others among the
        rest. ``stratified``: the same for every pair of label and modality.
    lesion_margin_mm
        How far a lesion's centre stays from the faces of a patch drawn about it.
    """

    lesion: float = 0.4
    vessel: float = 0.3
    foreground: float = 0.25
    uniform: float = 0.05
    balance: Balance = "natural"
    lesion_margin_mm: float = 6.0

    def of(self, scope: Scope) -> Sampling:
        """Return the mixture for samples of ``scope``: a series has one place, its whole volume."""
        if scope == "patch":
            return self
        return replace(self, lesion=0.0, vessel=0.0, foreground=0.0, uniform=1.0)

    def weights(self) -> dict[PatchKind, float]:
        """Return the samplers' shares, which sum to 1. Raises `SamplingError` if no weight is above 0."""
        weights: dict[PatchKind, float] = {
            "lesion": self.lesion, "vessel": self.vessel, "foreground": self.foreground, "uniform": self.uniform
        }  # fmt: skip
        total = sum(weights.values())
        if min(weights.values()) < 0 or not 0 < total < float("inf"):
            raise SamplingError(f"the weights of the samplers, {weights}, need to be at least 0, and one above it")
        return {kind: w / total for kind, w in weights.items() if w > 0}


@dataclass(frozen=True, slots=True)
class PlannedPatch:
    """One sample of an epoch: its number, the series, the sampler, and the row of the lesion (-1: none)."""

    epoch: int
    index: int
    volume: int
    kind: PatchKind
    lesion: int


class _Deck:
    """Items in shuffled rounds: each comes up once before any comes up again."""

    def __init__(self, items: list[tuple[int, int]], rng: np.random.Generator) -> None:
        self._items, self._rng = items, rng
        self._rest: list[tuple[int, int]] = []

    def draw(self, seen: Counter[int]) -> tuple[int, int]:
        """Return the next (volume, lesion) whose volume is not among ``seen``, or else is there least often."""
        most = 0
        while True:
            for k in range(len(self._rest) - 1, -1, -1):
                if seen[self._rest[k][0]] <= most:
                    return self._rest.pop(k)
            if len(self._rest) >= len(self._items):
                most = min(seen[volume] for volume, _ in self._items)
                if any(seen[volume] <= most for volume, _ in self._rest):
                    continue
            # Beneath those that had to be passed over, which therefore come up as soon as they may.
            self._rest = [self._items[i] for i in self._rng.permutation(len(self._items))] + self._rest


class _Strata:
    """Decks that are drawn from in turn, each as often as any other."""

    def __init__(self, items: dict[Hashable, list[tuple[int, int]]], rng: np.random.Generator) -> None:
        self._decks = [_Deck(items[key], rng) for key in sorted(items, key=str)]
        self._rng = rng
        self._turn: list[int] = []

    def draw(self, seen: Counter[int]) -> tuple[int, int]:
        if not self._turn:
            self._turn = self._rng.permutation(len(self._decks)).tolist()
        return self._decks[self._turn.pop()].draw(seen)


class Plan:
    """
    Draws the samples of any epoch, all of them from (seed, epoch).

    Parameters
    ----------
    cache
        Only its tables are used.
    volumes
        Indices of the series to draw from, such as a fold's.
    sampling
        The mixture and the balance.
    samples
        In an epoch.
    batch_size
        Over all ranks: within one such batch a series comes up again only if there are too few others.
    seed
        Of everything.

    Raises
    ------
    SamplingError
        There is nothing to draw from: no volumes, or the lesion sampler alone has weight and no lesion has a place.
    """

    def __init__(
        self, cache: Cache, volumes: Sequence[int], sampling: Sampling, samples: int, batch_size: int, seed: int
    ) -> None:
        self.samples, self.batch_size, self.seed, self.sampling = samples, batch_size, seed, sampling
        self.volumes = sorted({int(v) for v in volumes})
        if not self.volumes:
            raise SamplingError("there is no volume to draw patches from")
        rows = np.flatnonzero(np.isin(cache.lesion_volume, self.volumes))
        self._weights = sampling.weights()
        self._others = _without_lesion(self._weights)
        if len(rows) == 0:
            if self._weights.keys() == {"lesion"}:
                raise SamplingError("patches are to be drawn about lesions alone, but no lesion has a place")
            self._weights = self._others
        self._rows: dict[int, list[int]] = defaultdict(list)
        self._about: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
        self._series: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
        by_modality = sampling.balance == "stratified"
        for row in rows.tolist():
            volume = int(cache.lesion_volume[row])
            self._rows[volume].append(row)
            key = (int(cache.lesion_site[row]), cache.modalities[volume] if by_modality else "")
            self._about[key].append((volume, row))
        for volume in self.volumes:
            key = (int(cache.labels[volume, _PRESENT] == 1), cache.modalities[volume] if by_modality else "")
            self._series[key if sampling.balance != "natural" else ""].append((volume, -1))

    def epoch(self, epoch: int) -> Iterator[PlannedPatch]:
        """Yield the samples of ``epoch``, in order."""
        rng = generator(self.seed, epoch, 0, Stream.PLAN)
        series, about = _Strata(self._series, rng), _Strata(self._about, rng)
        seen: Counter[int] = Counter()
        for index in range(self.samples):
            if index % self.batch_size == 0:
                seen.clear()
            if self.sampling.balance == "natural":
                volume, lesion = series.draw(seen)
                rows = self._rows.get(volume, [])
                kind = _pick(rng, self._weights if rows else self._others)
                if kind == "lesion":
                    lesion = rows[int(rng.integers(len(rows)))]
            else:
                kind = _pick(rng, self._weights)
                volume, lesion = (about if kind == "lesion" else series).draw(seen)
            seen[volume] += 1
            yield PlannedPatch(epoch, index, volume, kind, lesion)


def _without_lesion(weights: dict[PatchKind, float]) -> dict[PatchKind, float]:
    """Return the shares where there is no lesion to draw about; anywhere, if nothing else was asked for."""
    rest = {kind: w for kind, w in weights.items() if kind != "lesion"}
    total = sum(rest.values())
    return {kind: w / total for kind, w in rest.items()} if rest else {"uniform": 1.0}


def _pick(rng: np.random.Generator, weights: dict[PatchKind, float]) -> PatchKind:
    at = rng.random()
    for kind, weight in weights.items():
        at -= weight
        if at < 0:
            return kind
    return kind
