"""Series, workers and a shared storage -> when the last series is done: a small discrete-event simulation.

A worker takes the next series of its queue, reads it, then computes; whoever reads at a moment shares the storage's
bandwidth evenly.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from aneurysm.precaching.expected_seconds import STORED_MB_S


@dataclass(frozen=True)
class Job:
    """One series: bytes to read, and seconds of one core."""

    uid: str
    size: float
    cpu_s: float
    packed: bool = False
    """Is it compressed?"""

    @property
    def expected_s(self) -> float:
        """What a plan would say, if it knew the computing: with the reading as it sees that."""
        return self.cpu_s + 1e-6 * STORED_MB_S * self.size


def makespan(queues: Sequence[Iterable[Job]], workers_each: int, bandwidth: float, *, stealing: bool = False) -> float:
    """
    Return the seconds until all ``queues`` are done, each by ``workers_each`` workers of its own.

    With ``stealing`` a worker whose queue is empty takes the next series of another one: of all that are next, the one
    that is expected to take longest.
    """
    left = [deque(queue) for queue in queues]
    now = read = 0.0  # the time; the bytes that each reader has got so far, had it read from the beginning
    reading: list[tuple[float, int, float]] = []
    computing: list[tuple[float, int]] = []

    def start(queue: int) -> None:
        source = left[queue]
        if not source and stealing:
            source = max(left, key=lambda other: other[0].expected_s if other else -1.0)
        if source:
            job = source.popleft()
            heapq.heappush(reading, (read + job.size, queue, job.cpu_s))

    for queue in list(range(len(left))) * workers_each:
        start(queue)
    while reading or computing:
        share = bandwidth / max(len(reading), 1)
        read_at = now + (reading[0][0] - read) / share if reading else np.inf
        if computing and computing[0][0] <= read_at:
            at, queue = heapq.heappop(computing)
            read += (at - now) * share
            now = at
            start(queue)
        else:
            read, queue, cpu_s = heapq.heappop(reading)
            now = read_at
            heapq.heappush(computing, (now + cpu_s, queue))
    return now


def least(jobs: Sequence[Job], workers: int, bandwidth: float) -> float:
    """Return the seconds that no order can beat: by cores, by storage, and by the one series that takes longest."""
    size, cpu_s = sum(j.size for j in jobs), sum(j.cpu_s for j in jobs)
    longest = max(j.size / bandwidth + j.cpu_s for j in jobs)
    return max((cpu_s + size / bandwidth) / workers, size / bandwidth, longest)


@dataclass(frozen=True)
class Costs:
    """Seconds of one core: for a series, for each 10^6 bytes once decoded, and for decoding as many."""

    series_s: float
    mb_s: float
    decode_mb_s: float


# Series; frames in the middle, and spread of their logarithm. RSNA.md has the counts, and of CTA the median 331 and the
# most, 1,441, which is where the largest of 1,808 is to be expected with a spread of 0.45. The other rows are assumed:
# thick T2 stacks, thin MRA and T1post; what they come to is scaled to the million files that are known.
_MODALITIES = ((1808, 331, 0.45), (1252, 160, 0.35), (983, 32, 0.5), (305, 176, 0.4))
_CTA = 1808
_FRAMES, _DECODED, _STORED = 1.0e6, 556e9, 311e9
_WIDE = 62
"""Series of 1,024 pixels instead of 512."""
RATIO = 2.5
"""Decoded by stored bytes of a compressed series, without loss."""


def rsna_jobs(costs: Costs, seed: int = 0) -> list[Job]:
    """Draw the 4,348 series of the RSNA set: files, bytes and decoded bytes come to what is known of the whole."""
    rng = np.random.default_rng(seed)
    drawn = [median * np.exp(spread * rng.standard_normal(n)) for n, median, spread in _MODALITIES]
    cta, mr = np.clip(drawn[0], 20, 1441), np.concatenate(drawn[1:])
    frames = np.concatenate([cta, mr * (_FRAMES - cta.sum()) / mr.sum()])
    decoded = frames.copy()
    decoded[rng.choice(_CTA, _WIDE, replace=False)] *= 4
    decoded *= _DECODED / decoded.sum()
    # Whole series are compressed or not, as many as bring the bytes to what is known.
    order = rng.permutation(len(decoded))
    saved = np.cumsum(decoded[order]) * (1 - 1 / RATIO)
    packed = order[: int(np.searchsorted(saved, _DECODED - _STORED)) + 1]
    stored, decode = decoded.copy(), np.zeros(len(decoded))
    stored[packed] /= RATIO
    decode[packed] = decoded[packed]
    cpu = costs.series_s + (costs.mb_s * decoded + costs.decode_mb_s * decode) / 1e6
    uids = rng.permutation(len(cpu))
    drawn_jobs = zip(uids, stored, cpu, decode > 0, strict=True)
    return [Job(f"{uid:04d}", float(size), float(cpu_s), bool(is_packed)) for uid, size, cpu_s, is_packed in drawn_jobs]
