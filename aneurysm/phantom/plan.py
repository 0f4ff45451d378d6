"""Seed -> SeriesPlan: which series a data set has, with which modality, aneurysms and quirks. Nothing is drawn yet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from aneurysm.errors import UsageError
from aneurysm.labels import MODALITIES, SITES
from aneurysm.phantom.quirks import QUIRKS, check_quirks, conflict, rejection
from aneurysm.phantom.randomness import Streams
from aneurysm.phantom.scanner import SIZES

_T = TypeVar("_T")

UID_ROOT = "1.2.826.0.1.3680043.8.498."
"""The root under which the RSNA data set's UIDs lie: free for generated UIDs (pydicom's)."""

_SHARES = dict(zip(MODALITIES, (1808, 1252, 983, 305), strict=True))
_PREVALENCE = 1864 / 4348
_SITE_COUNTS = dict(
    # Positive series of the real train.csv, rounded; Left ACA is the rarest with 46, ACom the commonest with 366.
    zip(SITES, (78, 98, 330, 277, 218, 294, 366, 46, 56, 86, 101, 110, 113), strict=True)
)
_SITES_PER_POSITIVE = (0.86, 0.115, 0.02, 0.005)
"""Shares of positive series with one, two, ... sites: 2,173 positive labels in 1,864 series."""

COVERED_FROM = 150
"""From this many series on a data set has every quirk at least once."""


@dataclass(frozen=True)
class SeriesPlan:
    """
    All that decides over one series: the same plan gives the same bytes.

    ``sites`` are the labels where an aneurysm sits; ``size`` is one of tiny, small and full; ``difficulty`` 1 is
    ordinary, more is harder.
    """

    seed: int
    index: int
    modality: str
    size: str = "small"
    sites: tuple[str, ...] = ()
    quirks: tuple[str, ...] = ()
    difficulty: float = 1.0

    @property
    def streams(self) -> Streams:
        """The random streams of this series."""
        return Streams(self.seed, self.index)

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return make_uid(self.seed, self.index, "series")

    @property
    def plane(self) -> str:
        """axial, sagittal or coronal."""
        return next((q for q in self.quirks if q in ("sagittal", "coronal")), "axial")

    @property
    def multiframe(self) -> bool:
        """Whether the series is one file."""
        one = ("multiframe", "shuffled_frames", "stripped_multiframe", "default_geometry")
        return any(q in one for q in self.quirks)

    @property
    def rejected(self) -> str:
        """The reason code with which precache must refuse the series, "" if it must cache it."""
        reason = rejection(self.quirks)
        return "" if reason is None else str(reason)

    def has(self, *quirks: str) -> bool:
        """Whether it has any of the quirks."""
        return any(q in self.quirks for q in quirks)


def make_uid(*parts: object) -> str:
    """Return a valid UID (PS3.5, 9.1: digits, no leading zeros, at most 64 characters) from anything."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    number = int.from_bytes(digest[:15], "big") % (9 * 10**34) + 10**34
    return f"{UID_ROOT}{number}"


def plan_series(
    seed: int = 0,
    index: int = 0,
    *,
    modality: str = "CTA",
    size: str = "tiny",
    sites: tuple[str, ...] = (),
    quirks: tuple[str, ...] = (),
    difficulty: float = 1.0,
) -> SeriesPlan:
    """
    Plan one series as asked: what tests use.

    Raises
    ------
    UsageError
        An unknown modality, size, site or quirk, or quirks that exclude each other.
    """
    if modality not in MODALITIES:
        raise UsageError(f"unknown modality {modality!r}: one of {', '.join(MODALITIES)}")
    if unknown := [s for s in sites if s not in SITES]:
        raise UsageError(f"unknown aneurysm site {unknown[0]!r}: one of {', '.join(SITES)}")
    _check_numbers(seed, 1, size, difficulty)
    check_quirks(quirks, modality, marked=bool(sites))
    order = tuple(q for q in QUIRKS if q in quirks)
    return SeriesPlan(seed, index, modality, size, tuple(sites), order, difficulty)


def plan_dataset(
    series: int, seed: int = 0, *, size: str = "small", difficulty: float = 1.0, quirks: bool = True
) -> list[SeriesPlan]:
    """
    Plan a data set with the shares of modalities, positives and sites of the real one.

    The shares are dealt out, not drawn, so that even a small set has them as nearly as whole numbers allow. From 150
    series on every quirk occurs.

    Raises
    ------
    UsageError
        A number out of range, or an unknown size.
    """
    _check_numbers(seed, series, size, difficulty)
    rng = Streams(seed, -1)("dataset")
    modalities = _deal(list(_SHARES), np.array(list(_SHARES.values()), float), series, rng)
    n_positive = int(np.floor(series * _PREVALENCE + 0.5))
    positive = np.zeros(series, dtype=bool)
    positive[rng.permutation(series)[:n_positive]] = True
    sites = _deal_sites(n_positive, rng)
    plans = []
    for i in range(series):
        mine = sites.pop() if positive[i] else ()
        plans.append(SeriesPlan(seed, i, modalities[i], size, mine, (), difficulty))
    return _deal_quirks(plans, rng) if quirks else plans


def _check_numbers(seed: int, series: int, size: str, difficulty: float) -> None:
    if size not in SIZES:
        raise UsageError(f"unknown size {size!r}: one of {', '.join(SIZES)}")
    if series < 1:
        raise UsageError(f"the number of series must be at least 1, not {series}")
    if seed < 0:
        raise UsageError(f"the seed must not be negative, and is {seed}")
    if not 0.25 <= difficulty <= 4.0:
        raise UsageError(f"the difficulty must lie between 0.25 and 4, not at {difficulty:g}")


def _deal(kinds: list[_T], shares: npt.NDArray[np.float64], n: int, rng: np.random.Generator) -> list[_T]:
    """``n`` items in the given shares, as nearly as whole numbers allow (largest remainders), in random order."""
    exact = shares / shares.sum() * n
    counts = np.floor(exact).astype(int)
    for i in np.argsort(-(exact - counts), kind="stable")[: n - counts.sum()]:
        counts[i] += 1
    dealt = [kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)]
    return [dealt[i] for i in rng.permutation(n)]


def _deal_sites(n: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Return the sites of each positive series."""
    if n == 0:
        return []
    per_series = _deal([1, 2, 3, 4], np.array(_SITES_PER_POSITIVE), n, rng)
    counts = np.array([_SITE_COUNTS[s] for s in SITES], float)
    cards = _deal(list(SITES), counts, sum(per_series), rng)
    hands: list[tuple[str, ...]] = []
    for want in sorted(per_series, reverse=True):
        hand: list[str] = []
        for card in cards:
            if card not in hand:
                hand.append(card)
                if len(hand) == want:
                    break
        for card in hand:
            cards.remove(card)
        hands.append(tuple(sorted(hand, key=SITES.index)))
    return [hands[i] for i in rng.permutation(n)]


def _deal_quirks(plans: list[SeriesPlan], rng: np.random.Generator) -> list[SeriesPlan]:
    """Give each quirk to as many series as its share says, to those that have fewest so far and can take it."""
    n = len(plans)
    counts = {}
    # Rounding up or down at random keeps the sum right where every share is below one series.
    for name, quirk in QUIRKS.items():
        exact = quirk.share * n
        counts[name] = int(exact) + int(rng.random() < exact % 1)
        if n >= COVERED_FROM:
            counts[name] = max(counts[name], 1)
    chosen: list[list[str]] = [[] for _ in plans]
    # What fits few series comes first.
    order = sorted(QUIRKS.values(), key=lambda q: (q.rejects is None, not q.marks, len(q.modalities), -len(q.places)))
    for quirk in order:
        left = counts[quirk.name]
        ranks = rng.random(n)
        for i in sorted(range(n), key=lambda i: (len(chosen[i]), ranks[i])):
            if left == 0:
                break
            hand = [*chosen[i], quirk.name]
            if not conflict(hand, plans[i].modality, marked=bool(plans[i].sites)):
                chosen[i] = hand
                left -= 1
    return [replace(plan, quirks=tuple(q for q in QUIRKS if q in own)) for plan, own in zip(plans, chosen, strict=True)]
