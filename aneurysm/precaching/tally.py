"""Tally: what the entries of a run's ledgers add up to, one after the other, in memory that hardly grows with them.

Of a series that is done only its outcome is kept, so that one which is tried twice, or by two tasks, counts once.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final

from aneurysm.errors import Reason
from aneurysm.precaching.ledger_files import Entry

_REASONS: Final = frozenset(str(reason) for reason in Reason)
_OUTCOMES: Final = frozenset({"cached", "rejected", "failed", "skipped"})
BIN_S: Final = 10.0
_BINS_KEPT: Final = 90
_SLOWEST: Final = 20
_MOST_SYNTAXES: Final = 40
_MOST_MINUTES: Final = 100_000
NOT_KNOWN: Final = "not known"


@dataclass(slots=True)
class InHand:
    """A series that a process began: when, its size, and the seconds that it should take, 0 if that is not known."""

    since: float
    size: int
    expected_s: float


@dataclass(slots=True)
class Start:
    """
    What a task found to do, by its ledger.

    ``series`` are those of all tasks together, of which ``done`` were done before, ``not_cached`` of these without a
    volume; ``todo`` series of ``size`` bytes and ``expected_s`` seconds are the task's own.
    """

    time: float
    series: int
    done: int
    not_cached: int
    todo: int
    size: int
    expected_s: float


@dataclass(slots=True)
class Work:
    """What was done: series, their bytes and voxels, the seconds that they took, and those that were expected."""

    series: int = 0
    failed: int = 0
    seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    voxels: int = 0
    expected_s: float = 0.0

    def add(self, other: Work) -> None:
        """Add what was done elsewhere."""
        self.series += other.series
        self.failed += other.failed
        self.seconds += other.seconds
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
        self.voxels += other.voxels
        self.expected_s += other.expected_s


def _work_of(entry: Entry) -> Work:
    """Return what the outcome of one series says."""
    return Work(
        series=1,
        failed=int(entry.event == "failed"),
        seconds=entry.number("seconds"),
        bytes_in=entry.count("bytes_in"),
        bytes_out=entry.count("bytes_out"),
        voxels=entry.count("voxels"),
        expected_s=entry.number("expected_s"),
    )


@dataclass(slots=True)
class Writer:
    """A process that wrote a ledger: a task's, or a worker of a cluster."""

    name: str
    opened: float
    last: float
    host: str = NOT_KNOWN
    job: str = ""
    task: str = ""
    pid: int = 0
    is_worker: bool = False
    version: str = NOT_KNOWN
    start: Start | None = None
    ended: float | None = None
    how: str = ""
    not_cached: int = 0
    in_hand: dict[str, InHand] = field(default_factory=dict)
    work: Work = field(default_factory=Work)


@dataclass(frozen=True, slots=True)
class TimedSeries:
    """How long a series took, and where."""

    seconds: float
    uid: str
    host: str
    bytes_in: int
    syntax: str

    def __lt__(self, other: TimedSeries) -> bool:
        return (self.seconds, self.uid) < (other.seconds, other.uid)


class Tally:
    """Counts of a run."""

    def __init__(self) -> None:
        self.writers: dict[str, Writer] = {}
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """How many series are done, by status and reason."""
        self.work = Work()
        self.by_host: dict[str, Work] = defaultdict(Work)
        self.by_syntax: dict[str, Work] = defaultdict(Work)
        self.by_minute: dict[tuple[str, int], Work] = defaultdict(Work)
        """By host and minute (of the epoch)."""
        self.recent: dict[int, Work] = defaultdict(Work)
        """By the number of `BIN_S` in the epoch; of the last quarter of an hour."""
        self.slowest: list[TimedSeries] = []
        """A heap."""
        self._outcome_of: dict[int, tuple[str, str]] = {}
        """By the hash of the UID, which takes a third of its memory."""
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}

    @property
    def done(self) -> int:
        """The number of series that are done, in this run or meanwhile in another."""
        return len(self._outcome_of)

    def is_done(self, uid: str) -> bool:
        """Return True if a series is done."""
        return hash(uid) in self._outcome_of

    def add(self, entry: Entry) -> None:
        """Take one entry."""
        if (writer := self.writers.get(entry.writer)) is None:
            writer = self.writers[entry.writer] = Writer(entry.writer, entry.time, entry.time)
        writer.last = max(writer.last, entry.time)
        match entry.event:
            case "opened":
                _describe(writer, entry)
            case "run_started":
                writer.start = _start(entry)
            case "series_started":
                hand = InHand(entry.time, entry.count("bytes"), entry.number("expected_s"))
                if uid := entry.name("series"):
                    writer.in_hand[uid] = hand
            case "dropped" | "busy" | "changed":
                writer.in_hand.pop(entry.name("series"), None)
            case "run_ended":
                writer.ended, writer.how = entry.time, entry.name("how")
                writer.not_cached = entry.count("not_cached")
            case event if event in _OUTCOMES:
                self._add_outcome(writer, entry)

    def _add_outcome(self, writer: Writer, entry: Entry) -> None:
        if not (uid := entry.name("series")):
            return
        writer.in_hand.pop(uid, None)
        reason = ""
        if entry.event in ("rejected", "failed"):
            reason = entry.name("reason")
            reason = reason if reason in _REASONS else NOT_KNOWN
        outcome = (entry.event, reason)
        outcome = self._keys.setdefault(outcome, outcome)
        key = hash(uid)
        before = self._outcome_of.get(key)
        if before is not None and (entry.event == "skipped" or before[0] == "cached" != entry.event):
            return  # another task of this run built it, and this one came too late, or failed to replace it
        if before is not None:
            self.outcomes[before] -= 1
        self.outcomes[outcome] += 1
        self._outcome_of[key] = outcome
        if entry.event == "skipped":
            return
        syntax = entry.name("syntax")
        works = [self.work, writer.work, self.by_host[writer.host], self.recent[int(entry.time // BIN_S)]]
        minute = (writer.host, int(entry.time // 60))
        if minute in self.by_minute or len(self.by_minute) < _MOST_MINUTES:
            works.append(self.by_minute[minute])
        if syntax and (syntax in self.by_syntax or len(self.by_syntax) < _MOST_SYNTAXES):
            works.append(self.by_syntax[syntax])
        one = _work_of(entry)
        for work in works:
            work.add(one)
        if len(self.recent) > 2 * _BINS_KEPT:
            for old in sorted(self.recent)[:-_BINS_KEPT]:
                del self.recent[old]
        timed = TimedSeries(one.seconds, uid, writer.host, one.bytes_in, syntax)
        if len(self.slowest) < _SLOWEST:
            heapq.heappush(self.slowest, timed)
        elif self.slowest[0] < timed:
            heapq.heapreplace(self.slowest, timed)


def _describe(writer: Writer, entry: Entry) -> None:
    if writer.host != NOT_KNOWN:
        return  # a later part of the same ledger
    writer.opened, writer.pid = entry.time, entry.count("pid")
    writer.host, writer.version = entry.name("host") or NOT_KNOWN, entry.name("version") or NOT_KNOWN
    writer.job, writer.task = entry.name("job"), entry.name("task")
    writer.is_worker = entry.name("role") == "worker"


def _start(entry: Entry) -> Start:
    return Start(
        time=entry.time,
        series=entry.count("series"),
        done=entry.count("done"),
        not_cached=entry.count("not_cached"),
        todo=entry.count("todo"),
        size=entry.count("bytes"),
        expected_s=entry.number("expected_s"),
    )
