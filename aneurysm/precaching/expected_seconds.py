"""SeriesFacts -> the seconds that one core will take: by measured constants, corrected by what the cache's series took.

A compressed series takes up to twenty times as long as another of as many voxels, and is smaller: bytes on disk say
little about time. What is known of a machine stands in the ledgers of the runs that built the cache: of each kind of
encoding the median of seconds by what was expected. A median bears a node that was busy, a disk that hung and
a ledger that is damaged in places; few series change nothing.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from aneurysm.dicom.encoding import JPEG, JPEG_2000, JPEG_LS, NATIVE, RLE
from aneurysm.errors import AneurysmError
from aneurysm.precaching.ledger_files import open_ledgers, runs_of
from aneurysm.rawdata.facts import SeriesFacts

_SERIES_S: Final = 0.02
_MB_S: Final = 2.6e-3
"""For each 10^6 decoded bytes, whatever their encoding: two for a voxel. As `benchmarks.rsna_makespan` measures."""
STORED_MB_S: Final = 4e-3
"""
For each 10^6 bytes that are read: what a worker gets of a storage that many share. Without it series that are large and
not compressed would come last, all at once, and wait for the storage (`benchmarks.rsna_makespan`).
"""
_DECODE_MB_S: Final = {"plain": 0.0, "RLE": 1e-3, "JPEG": 11e-3, "JPEG-LS": 11e-3, "JPEG 2000": 43e-3, "other": 11e-3}
"""For each 10^6 decoded bytes, by encoding. JPEG is taken for as slow as JPEG-LS."""
_UNKNOWN: Final = "unknown"
_RATIO: Final = 2.5
"""Decoded by stored bytes of what is compressed without loss."""
_LEAST_POINTS: Final = 10
_MOST_FACTOR: Final = 20.0
_RUNS: Final = 5
_ENTRIES: Final = 200_000
"""At most this many lines of the newest runs are read: seconds, and a median needs no more."""


def encoding_of(syntax: str) -> str:
    """Return the kind of encoding of a transfer syntax, or of several between commas: of these the slowest."""
    kinds = [_encoding(one) for one in syntax.split(",")]
    return max(kinds, key=lambda kind: _DECODE_MB_S.get(kind, 0.0))


def _encoding(syntax: str) -> str:
    if not syntax:
        return _UNKNOWN
    if syntax in NATIVE:
        return "plain"
    if syntax == RLE:
        return "RLE"
    if syntax in JPEG:
        return "JPEG"
    if syntax in JPEG_LS:
        return "JPEG-LS"
    return "JPEG 2000" if syntax in JPEG_2000 or syntax.startswith("1.2.840.10008.1.2.4.2") else "other"


@dataclass(frozen=True)
class CostModel:
    """Seconds of series; ``factors`` correct the constants by kind of encoding, ``factor`` those of other kinds."""

    factor: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, facts: SeriesFacts) -> float:
        """Return the seconds that a series will take; of one of which no header is known, by its bytes."""
        kind = encoding_of(facts.syntax)
        return round(_by_constants(facts, kind) * self.factors.get(kind, self.factor), 4)


def _by_constants(facts: SeriesFacts, kind: str) -> float:
    decoded_mb = 2e-6 * facts.voxels
    if not facts.voxels:
        # It may be compressed or not. Between the two: neither is off by more than the other.
        decoded_mb = 1e-6 * facts.bytes * math.sqrt(_RATIO)
    decode = _DECODE_MB_S.get(kind, 0.0)
    return _SERIES_S + (_MB_S + decode) * decoded_mb + STORED_MB_S * 1e-6 * facts.bytes


def fitted_costs(points: Iterable[tuple[SeriesFacts, float]]) -> CostModel:
    """Return the costs by series whose ``facts`` and seconds are known; the constants where there are few."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for facts, seconds in points:
        if facts.voxels > 0 and math.isfinite(seconds) and seconds > 0:
            kind = encoding_of(facts.syntax)
            ratios[kind].append(seconds / _by_constants(facts, kind))
    every = [ratio for of_kind in ratios.values() for ratio in of_kind]
    return CostModel(_factor(every), {k: _factor(r) for k, r in sorted(ratios.items()) if len(r) >= _LEAST_POINTS})


def _factor(ratios: list[float]) -> float:
    if len(ratios) < _LEAST_POINTS:
        return 1.0
    return min(max(statistics.median(ratios), 1 / _MOST_FACTOR), _MOST_FACTOR)


def recorded_costs(cache: str) -> CostModel:
    """Return the costs by the newest runs of ``cache``, a folder or a URL; the constants where there is none."""
    return fitted_costs(islice(_points(cache), _ENTRIES))


def _points(cache: str) -> Iterator[tuple[SeriesFacts, float]]:
    with suppress(AneurysmError, OSError):  # how long it took is only of help
        for run in runs_of(cache)[:_RUNS]:
            for entry in islice(open_ledgers(cache, run).read(), _ENTRIES):
                if entry.event == "cached":
                    facts = SeriesFacts(
                        bytes=entry.count("bytes_in"),
                        frames=entry.count("frames"),
                        voxels=entry.count("voxels"),
                        syntax=entry.name("syntax"),
                    )
                    yield facts, entry.number("seconds")
