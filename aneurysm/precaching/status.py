"""RunStatus: how far a run is, who is at what, and what is odd about it, by the ledgers of all its tasks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from aneurysm.precaching.ledger import HEARTBEAT_S
from aneurysm.precaching.ledger_files import LedgerFiles, open_ledgers
from aneurysm.precaching.run_id import host_name
from aneurysm.precaching.tally import BIN_S, InHand, Start, Tally, Work, Writer

STATUS_VERSION: Final = 1
"""Of the keys of `status_facts`."""
TaskState = Literal["planning", "running", "silent", "dead", "ended", "stopped"]
"""``silent``: it holds its lock, and has written nothing for minutes. ``stopped``: by a signal or an error."""

SILENT_S: Final = 3 * HEARTBEAT_S
_WINDOW_S: Final = 300.0
_LEAST_WINDOW_S: Final = 5.0
_SLOW: Final = 3.0
_SLOW_S: Final = 30.0
"""No series is a straggler before it."""
_ENOUGH: Final = 5
"""Series that are done before others are compared with them."""
_FEWEST_FAILED: Final = 3
_LEAST_CHANCE: Final = 1e-12
_CHANCE: Final = 0.001
"""That a run of sound hosts is said to have an odd one."""


@dataclass(frozen=True)
class SeriesInHand:
    """A series that is being built; ``expected_s`` is 0 if nothing is known of that."""

    uid: str
    host: str
    job: str
    task: str
    for_s: float
    expected_s: float
    is_straggler: bool


@dataclass(frozen=True)
class TaskStatus:
    """A task of the run, or a worker of a cluster (``is_worker``): the last process that was it."""

    task: str
    host: str
    job: str
    is_worker: bool
    state: TaskState
    how: str
    """How it ended: ``done``, ``terminated``, ``interrupted`` or ``error``; else empty."""
    done: int
    failed: int
    in_hand: int
    last_s: float
    """Seconds since its last line."""


@dataclass(frozen=True)
class OddHost:
    """A host where more series fail than elsewhere, and how likely so many are, or more, if it were like the others."""

    host: str
    failed: int
    done: int
    chance: float

    def __str__(self) -> str:
        p = f"p = {self.chance:.0e}" if self.chance >= _LEAST_CHANCE else f"p < {_LEAST_CHANCE:.0e}"
        return f"{self.failed} of {self.done} series failed on {self.host}, more than elsewhere ({p})"


@dataclass(frozen=True)
class RunStatus:
    """
    The state of a run.

    ``total`` is None until the first task has planned. Rates are of the last minutes. ``left_s`` is None where there is
    nothing to tell it by.
    """

    run: str
    time: float
    started: float
    elapsed_s: float
    """Until now, or to the last line of a run that is over."""
    total: int | None
    done: int
    done_before: int
    cached: int
    rejected: int
    failed: int
    skipped: int
    not_cached: int
    """Rejected, failed, or known not to be cacheable before."""
    reasons: dict[str, int]
    series_per_min: float
    bytes_per_s: float
    bytes_in: int
    bytes_out: int
    series_s: float
    """Seconds that series took, all together."""
    left_s: float | None
    in_hand: tuple[SeriesInHand, ...]
    """Longest first."""
    lost: int
    """Series that were in the hands of tasks that are dead, and are nobody's now."""
    tasks: tuple[TaskStatus, ...]
    tasks_total: int
    """Those that have not begun, too, if they are known."""
    odd_hosts: tuple[OddHost, ...]
    versions: dict[str, int]
    """Processes by the version of this package."""
    damaged: int
    """Lines of ledgers that could not be read."""

    @property
    def is_complete(self) -> bool:
        """Return True if all series are done, and no task is at work."""
        return self.total is not None and self.done >= self.total and not self.is_active

    @property
    def is_active(self) -> bool:
        """Return True if a task is at work."""
        return any(t.state in ("planning", "running", "silent") for t in self.tasks if not t.is_worker)

    @property
    def is_over(self) -> bool:
        """Return True if nothing will happen any more: no task is at work, and none is still to begin."""
        begun = sum(not t.is_worker for t in self.tasks)
        return not self.is_active and (self.is_complete or begun >= self.tasks_total)


class RunWatch:
    """
    The ledgers of a run, read as they grow.

    Raises
    ------
    CacheNotFoundError
        There is no cache.
    RunNotFoundError
        There is no such run; or none, if no ``run`` is named.
    """

    def __init__(self, cache: str | Path, run: str | None = None) -> None:
        self._files: LedgerFiles = open_ledgers(cache, run)
        self.tally = Tally()

    def look(self, now: float | None = None) -> RunStatus:
        """Read what was written since the last look; return the state of the run at the time ``now``."""
        for entry in self._files.read():
            self.tally.add(entry)
        return run_status(self.tally, self._files, time.time() if now is None else now)


def run_status(tally: Tally, files: LedgerFiles, now: float) -> RunStatus:
    """Return the state that ``tally`` comes to; ``files`` are asked who is alive."""
    writers = _current(tally.writers.values())
    states = {w.name: _state(w, files, now) for w in writers}
    starts = sorted((w.start for w in tally.writers.values() if w.start), key=lambda s: s.time)
    done_before = starts[0].done if starts else 0
    done = max([done_before + tally.done, *(s.done for s in starts)])
    by_status = Counter[str]()
    reasons = Counter[str]()
    for (status, reason), n in tally.outcomes.items():
        by_status[status] += n
        if reason and n:
            reasons[reason] += n
    is_active = any(s in ("planning", "running", "silent") for s in states.values())
    # Of a run that is over, the rate is that of its last minutes.
    end = now if is_active else max((w.last for w in tally.writers.values()), default=now)
    begun = min((s.time for s in starts), default=end)
    window = _recent(tally, end)
    window_s = max(_LEAST_WINDOW_S, min(_WINDOW_S, end - begun))
    not_cached = (starts[0].not_cached if starts else 0) + by_status["rejected"] + by_status["failed"]
    total = starts[-1].series if starts else None
    in_hand = [
        _series(uid, hand, writer, tally, now)
        for writer in writers
        if states[writer.name] in ("running", "silent")
        for uid, hand in writer.in_hand.items()
    ]
    held = {s.uid for s in in_hand}
    lost = sum(
        not tally.is_done(uid) and uid not in held
        for writer in writers
        if states[writer.name] == "dead"
        for uid in writer.in_hand
    )
    started = min((w.opened for w in tally.writers.values()), default=now)
    return RunStatus(
        run=files.run,
        time=now,
        started=started,
        elapsed_s=round(max(0.0, end - started), 3),
        total=total,
        done=done,
        done_before=done_before,
        cached=by_status["cached"],
        rejected=by_status["rejected"],
        failed=by_status["failed"],
        skipped=by_status["skipped"],
        not_cached=max([not_cached, *(w.not_cached for w in writers)]),
        reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        series_per_min=60 * window.series / window_s,
        bytes_per_s=window.bytes_in / window_s,
        bytes_in=tally.work.bytes_in,
        bytes_out=tally.work.bytes_out,
        series_s=round(tally.work.seconds, 3),
        left_s=0.0 if total is not None and done >= total else _left(writers, window, window_s, (total or 0) - done),
        in_hand=tuple(sorted(in_hand, key=lambda s: (-s.for_s, s.uid))),
        lost=lost,
        tasks=tuple(_task(w, states[w.name], now) for w in writers),
        tasks_total=_tasks_total(writers),
        odd_hosts=odd_hosts({host: (w.failed, w.series) for host, w in tally.by_host.items()}),
        versions=dict(sorted(Counter(w.version for w in tally.writers.values()).items())),
        damaged=files.damaged,
    )


def status_facts(status: RunStatus) -> dict[str, Any]:
    """Return what `aneurysm status --json` shows."""
    facts = asdict(status)
    flags = {"complete": status.is_complete, "active": status.is_active, "over": status.is_over}
    return {"version": STATUS_VERSION, "run": facts.pop("run"), **flags, **facts}


def _current(writers: Iterable[Writer]) -> list[Writer]:
    """Return the newest process of each task, and all workers, in the order of tasks."""
    newest: dict[str, Writer] = {}
    for writer in sorted(writers, key=lambda w: w.opened):
        newest[writer.name if writer.is_worker else f"task {writer.task}"] = writer
    return sorted(newest.values(), key=lambda w: (w.is_worker, _task_index(w.task), w.host, w.name))


def _task_index(task: str) -> int:
    index = task.partition("/")[0]
    return int(index) if index.isdecimal() and len(index) < 10 else 0


def _tasks_total(writers: Sequence[Writer]) -> int:
    tasks = [w for w in writers if not w.is_worker]
    counts = [w.task.partition("/")[2] for w in tasks]
    return max([len(tasks), *(int(n) for n in counts if n.isdecimal() and len(n) < 7)])


def _state(writer: Writer, files: LedgerFiles, now: float) -> TaskState:
    if writer.ended is not None:
        return "ended" if writer.how == "done" else "stopped"
    silent_s = now - writer.last
    if files.is_held(writer.name):
        if silent_s > SILENT_S and not writer.is_worker:
            return "silent"
    elif writer.is_worker and not writer.in_hand:
        return "ended"
    elif silent_s > SILENT_S or (writer.host == host_name() and not _is_alive(writer.pid)):
        return "dead"  # where locks do not reach, its silence says it
    return "planning" if writer.start is None and not writer.is_worker else "running"


def _is_alive(pid: int) -> bool:
    return pid <= 0 or Path(f"/proc/{pid}").exists()


def _recent(tally: Tally, end: float) -> Work:
    total = Work()
    for number, work in tally.recent.items():
        if end - _WINDOW_S < (number + 1) * BIN_S and number * BIN_S <= end:
            total.add(work)
    return total


def _left(writers: Sequence[Writer], window: Work, window_s: float, series: int) -> float | None:
    """Return the seconds left at the present rate: of expected seconds, else of bytes, else of series."""
    starts: list[Start] = [w.start for w in writers if w.start]
    begun = len(starts)
    if not begun or not window.series:
        return None
    # Tasks that have not begun are taken to be like the others.
    scale = max(1.0, _tasks_total(writers) / begun)
    if all(s.expected_s for s in starts if s.todo) and window.expected_s:
        left = sum(s.expected_s for s in starts) * scale - sum(w.work.expected_s for w in writers)
        return max(0.0, left / (window.expected_s / window_s))
    if window.bytes_in:
        left = sum(s.size for s in starts) * scale - sum(w.work.bytes_in for w in writers)
        return max(0.0, left / (window.bytes_in / window_s))
    return series / (window.series / window_s)


def _series(uid: str, hand: InHand, writer: Writer, tally: Tally, now: float) -> SeriesInHand:
    expected_s = _expected_s(hand, tally.work)
    for_s = max(0.0, now - hand.since)
    slow = expected_s > 0 and for_s > max(_SLOW_S, _SLOW * expected_s)
    return SeriesInHand(uid, writer.host, writer.job, writer.task, round(for_s, 1), round(expected_s, 1), slow)


def _expected_s(hand: InHand, work: Work) -> float:
    """
    Return how long a series takes, by those that are done; 0 if these are too few.

    What a plan expects is of another machine: how much slower this one is, or faster, they say, too.
    """
    if work.series < _ENOUGH:
        return 0.0
    if hand.expected_s:
        return hand.expected_s * (work.seconds / work.expected_s if work.expected_s else 1.0)
    return max(hand.size * work.seconds / work.bytes_in, work.seconds / work.series) if work.bytes_in else 0.0


def _task(writer: Writer, state: TaskState, now: float) -> TaskStatus:
    return TaskStatus(
        task=writer.task,
        host=writer.host,
        job=writer.job,
        is_worker=writer.is_worker,
        state=state,
        how=writer.how,
        done=writer.work.series,
        failed=writer.work.failed,
        in_hand=len(writer.in_hand) if state in ("running", "silent") else 0,
        last_s=round(max(0.0, now - writer.last), 1),
    )


def odd_hosts(counts: dict[str, tuple[int, int]]) -> tuple[OddHost, ...]:
    """
    Return the hosts where more series fail than elsewhere, of (failed, done) by host.

    If all hosts were alike, each series would fail with the probability that the other hosts show (Laplace's estimate),
    and the failures of a host would be binomial. A host is odd if as many as it has are less likely than 1 in 1000,
    by the number of hosts (Bonferroni).
    """
    from scipy.special import bdtrc

    all_failed, all_done = (sum(n[i] for n in counts.values()) for i in (0, 1))
    found = []
    for host, (failed, done) in counts.items():
        if failed < _FEWEST_FAILED or all_done == done:
            continue
        elsewhere = (all_failed - failed + 1) / (all_done - done + 2)
        if failed / done <= elsewhere:
            continue
        chance = float(bdtrc(failed - 1, done, elsewhere)) * len(counts)
        if chance < _CHANCE:
            found.append(OddHost(host, failed, done, chance))
    return tuple(sorted(found, key=lambda h: (h.chance, h.host)))
