"""Planner: what the data hold against what the cache holds -> the series that are missing, and all to know of each.

What needs no decoding is done here, too, before anything is built: annotations that changed, records of series that
only a table names, records of what there is no more.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.cache.folder import cached_series, recorded_series
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.metadata import read_record
from aneurysm.errors import CacheError, DataError, PlanError, Reason
from aneurysm.lazy_sequence import LazySequence
from aneurysm.precaching.build_series import record_of
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.expected_seconds import CostModel
from aneurysm.precaching.partition import Shard, deal
from aneurysm.precaching.plan import Counts, Plan, PlanDocument, PlannedSeries, others_of, write_plan
from aneurysm.precaching.plan_folder import PlanFolder
from aneurysm.precaching.publish import publish_record, sweep
from aneurysm.precaching.relabel import Annotations, Update, relabel
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.processes.children import Limits, Runner
from aneurysm.processes.threads import map_io
from aneurysm.rawdata.facts import FactsTable
from aneurysm.rawdata.folder import UNREADABLE, DataFolder, Inventory, SeriesSource, safe_source
from aneurysm.spec import RECIPE_VERSION, CacheSpec

_log: Final = logging.getLogger(__name__)
_NAMED_IN: Final = "named in "
"""So the record of a series begins that only a table knows."""


@dataclass(frozen=True)
class Choice:
    """
    Which series are wanted.

    Attributes
    ----------
    series
        Only these UIDs; all if there are none.
    retry_failed
        Also those that an earlier run rejected or failed on.
    overwrite
        Also those that are there.
    """

    series: tuple[str, ...] = ()
    retry_failed: bool = False
    overwrite: bool = False


def _nothing() -> None:
    pass


@dataclass
class Task:
    """
    What one process is to do.

    Attributes
    ----------
    inventory
        What the data hold, as far as the task has to know.
    todo
        What it is to build, in this order.
    uids
        All its series, also those that were done before, or are beyond a limit; none if it is to do all there are.
    done
        How many of them were done before.
    updates
        What came of annotations that were to be brought up to the tables and masks.
    whole
        What it is a part of.
    has_labels
        Whether there is a train.csv.
    others
        Yields the series of all other parts, which may be done by now.
    is_planned
        Whether it was planned some time ago: a series that has changed since is then left alone.
    finish
        Is to be called when all of it is done.
    """

    inventory: Inventory
    todo: list[PlannedSeries]
    uids: list[str]
    done: int
    whole: Counts = field(default_factory=Counts)
    updates: list[Update] = field(default_factory=list)
    has_labels: bool = True
    others: Callable[[], Iterable[PlannedSeries]] = tuple
    is_planned: bool = False
    finish: Callable[[], None] = _nothing


class Planner:
    """
    Compares ``data`` with the cache at ``place``.

    There may be ten million series. So a series is its index, by rising UID, and what is known of all is an array by
    it, or a dictionary by strings that they share; all else is made when it is needed.

    Raises
    ------
    DataError
        There are no data, a table can't be read, or a chosen series is not among them.
    """

    def __init__(
        self,
        place: Destination,
        data: DataFolder,
        spec: CacheSpec,
        choice: Choice,
        *,
        workers: int,
        limits: Limits,
        processes: Runner,
    ) -> None:
        self._place, self._data, self._spec, self._choice = place, data, spec, choice
        self._workers, self._limits, self._processes = workers, limits, processes
        self._fingerprint = data.fingerprint()  # before the tables are read: what changes from now on is seen later
        self.inventory = data.find_series(workers, limits, processes)
        sources = _chosen(self.inventory, choice.series)
        uids = [source.uid for source in sources]
        order = sorted(range(len(uids)), key=uids.__getitem__)
        self._sources = LazySequence(sources.__getitem__, np.array(order, np.int32))
        self._uids = [uids[i] for i in order]
        self.tables = data.tables()
        self._facts = FactsTable(len(uids))
        self._cached: set[str] = set()
        self._recorded: set[str] = set()
        self._is_cached = self._is_done = np.zeros(len(uids), bool)
        self._known = Annotations(self.tables, None)

    def task(self, shard: Shard | None, limit: int | None) -> Task:
        """
        Return what this process is to do: all, or of all series, dealt out by their bytes, its part.

        Every task that sees the same data comes to the same parts, at any time, without a word between them.
        """
        mine = np.arange(len(self._uids))
        if shard:
            self._facts.fill(mine, self._data.extents(self._sources))
            mine = np.sort(deal(self._facts.bytes, shard.count)[shard.index])
        self._open()
        todo = mine[self._is_missing[mine]]
        if not shard:
            self._facts.fill(todo, self._data.extents(self._series(todo)))
        todo = self._by_size(todo)[:limit]
        with translate_write_errors(self._place.layout.root):
            self._place.check_space(self._series(todo), self._spec, self._processes, self._limits)
        updates = self._settle(mine, todo, whole=shard is None or shard.index == 0)
        others = LazySequence(self._planned, np.flatnonzero(~self._among(mine)))
        return Task(
            self.inventory,
            [self._planned(i) for i in map(int, todo)],
            [self._uids[i] for i in mine] if shard else [],
            int((self._wanted_before & ~self._among(todo))[mine].sum()),
            self._counts(),
            updates,
            self.tables.has_labels,
            (lambda: others) if shard else tuple,
        )

    def plan(
        self, count: int, folder: PlanFolder, costs: CostModel, *, once: bool = False
    ) -> tuple[Plan, list[Update]]:
        """
        Deal out what is missing to ``count`` parts, by expected seconds, and write the plan; see `write_plan`.

        What one task does for all is done before that: a task of the plan has nothing but its series to look after.
        Return the plan, and what came of annotations that were to be brought up to the tables and masks.

        Raises
        ------
        NoSpaceError
            The cache has too little room for what is missing.
        """
        self._open()
        todo = np.flatnonzero(self._is_missing)
        self._facts.fill(todo, self._data.facts(self._series(todo), self._workers, self._limits, self._processes))
        with translate_write_errors(self._place.layout.root):
            self._place.check_space(self._series(self._by_size(todo)), self._spec, self._processes, self._limits)
        updates = self._settle(np.arange(len(self._uids)), todo, whole=True)
        with translate_write_errors(self._place.layout.root):
            self._place.refresh()  # sends what was recorded

        def planned(index: int) -> PlannedSeries:
            return replace(self._planned(index), seconds=costs.seconds(self._facts[index]))

        seconds = np.fromiter((costs.seconds(self._facts[index]) for index in map(int, todo)), np.float64, len(todo))
        parts = (LazySequence(planned, todo[part]) for part in deal(seconds, count))
        counts = self._counts()
        about = PlanDocument(
            data=str(self.inventory.root),
            layout="rsna" if self.inventory.layout == "rsna" else "tree",
            cache=self._place.name,
            spec=self._spec.to_toml(),
            spec_name=self._spec.name,
            digest=self._spec.digest,
            recipe=RECIPE_VERSION,
            series=counts.series,
            done=counts.done,
            not_cached=counts.not_cached,
            retry_failed=self._choice.retry_failed,
            overwrite=self._choice.overwrite,
            has_labels=self.tables.has_labels,
            fingerprint=self._fingerprint,
            parts=[],
        )
        return write_plan(folder, about, parts, once=once), updates

    def _open(self) -> None:
        """Open the cache, and look at what is there."""
        layout = self._place.layout
        with translate_write_errors(layout.root):
            self._place.open(self._spec)
            sweep(layout)
            self._cached, self._recorded = cached_series(layout), recorded_series(layout)
        count = len(self._uids)
        self._is_cached = np.fromiter((uid in self._cached for uid in self._uids), bool, count)
        self._is_done = self._is_cached | np.fromiter((uid in self._recorded for uid in self._uids), bool, count)
        self._known = Annotations(self.tables, self._data.find_masks())

    @property
    def _wanted_before(self) -> NDArray[np.bool_]:
        """(series,), True for those that count as done, whatever is to be built again."""
        return self._is_cached if self._choice.retry_failed else self._is_done

    @property
    def _is_missing(self) -> NDArray[np.bool_]:
        """(series,), True for those that are to be built."""
        return np.ones_like(self._is_done) if self._choice.overwrite else ~self._wanted_before

    def _counts(self) -> Counts:
        done = ~self._is_missing
        return Counts(len(done), int(done.sum()), int((done & ~self._is_cached).sum()))

    def _among(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (series,), True for those of ``indices``."""
        among = np.zeros(len(self._uids), bool)
        among[indices] = True
        return among

    def _by_size(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return indices[np.argsort(-self._facts.bytes[indices], kind="stable")]

    def _series(self, indices: NDArray[np.int64]) -> Sequence[SeriesSource]:
        return LazySequence(self._sources.__getitem__, indices)

    def _planned(self, index: int) -> PlannedSeries:
        source = self._sources[index]
        mask = (self._known.masks or {}).get(source.uid)
        return PlannedSeries(source, self.tables.of(source.uid), mask, self._facts[index])

    def _settle(self, mine: NDArray[np.int64], building: NDArray[np.int64], *, whole: bool) -> list[Update]:
        """
        Bring the annotations of those of ``mine`` that are done, and not being built, up to tables and masks.

        With ``whole`` also do what one task does for all: records of what is in tables alone, or nowhere any more.
        """
        place = self._place
        is_stale = self._is_done & ~self._among(building)
        stale = [self._uids[i] for i in mine[is_stale[mine]]]
        with translate_write_errors(place.layout.root):
            if whole and not self._choice.series:
                stale += self._record_missing()
                place.remove_records(self._unreadable_before())
            if stale:
                place.refresh(metadata=stale)
        if not stale:
            return []
        return relabel(
            place,
            stale,
            self._known,
            self._spec,
            workers=self._workers,
            limits=self._limits,
            processes=self._processes,
        )

    def _record_missing(self) -> list[str]:
        """
        Give series that the tables name and the data lack a row of their own; return those that had one before.

        The records of series that the tables named once, and do not any more, are removed.
        """
        tables, layout = self.tables, self._place.layout

        def record(uid: str) -> None:
            notes = tables.of(uid)
            named = "train.csv" if notes.labels else "train_localizers.csv"
            detail = f"{_NAMED_IN}{named}, but there is no such series in the data"
            missing = record_of(self._spec, safe_source(uid).uid, Reason.NO_FILES, detail, notes)
            publish_record(layout, missing)

        named = {safe_source(uid).uid: uid for uid in sorted(u for u in tables if not self._is_in_data(u))}
        missing = [uid for name, uid in named.items() if name not in self._cached and name not in self._recorded]
        # Each waits for the disk: of 100,000, as where a part of the data is tried, that would be minutes.
        deque(map_io(missing, record), maxlen=0)
        if tables.has_labels and tables.has_localizers:
            unnamed = sorted(uid for uid in self._records_alone() if uid not in named)
            self._place.remove_records([uid for uid in unnamed if _is_of_no_series(layout, uid)])
        return [
            uid for name, uid in named.items() if name == uid and name in self._recorded and name not in self._cached
        ]

    def _unreadable_before(self) -> list[str]:
        """Return the records of files that could not be read in an earlier run, and whose series was not known."""
        return sorted(uid for uid in self._records_alone() if uid.startswith(f"{UNREADABLE}-"))

    def _records_alone(self) -> Iterator[str]:
        """Yield the series that are neither cached nor in the data, but have a record."""
        return (uid for uid in self._recorded if uid not in self._cached and not self._is_in_data(uid))

    def _is_in_data(self, uid: str) -> bool:
        """Return True if a series is one of all that are looked at."""
        index = bisect_left(self._uids, uid)
        return index < len(self._uids) and self._uids[index] == uid


def part_of_plan(place: Destination, plan: Plan, data: DataFolder, shard: Shard, limit: int | None) -> Task:
    """
    Return the task that is a part of a plan: neither data nor tables are looked at, and of the cache its series alone.

    Raises
    ------
    PlanError
        The part is missing or damaged; or the plan is of other tables than there are now, or of another cache.
    """
    document, spec = plan.document, plan.spec()
    if document.cache != place.name:
        raise PlanError(f"{plan.folder.name} is the plan of {document.cache}, and not of {place.name}")
    fingerprint = data.fingerprint(document.fingerprint)
    if changed := sorted(dict(fingerprint.contents().items() ^ document.fingerprint.contents().items())):
        raise PlanError(
            f"{' and '.join(changed)} changed since {plan.folder.name} was made. Make the plan again: aneurysm plan"
        )
    if fingerprint.top_level != document.fingerprint.top_level:
        _log.warning(
            "there is something else in %s than when %s was made: series that came since are in no part",
            data.name,
            plan.folder.name,
        )
    series = plan.part(shard.index)
    with translate_write_errors(place.layout.root):
        place.open_part(spec)
        uids = [planned.source.uid for planned in series]
        done = set() if document.overwrite else place.volumes_among(uids)
        if not (document.overwrite or document.retry_failed):
            done |= place.records_among([uid for uid in uids if uid not in done])
    todo = [planned for planned in series if planned.source.uid not in done][:limit]
    inventory = Inventory(document.data, document.layout, [planned.source for planned in series])
    return Task(
        inventory,
        todo,
        uids,
        len(done),
        document.counts,
        has_labels=document.has_labels,
        others=lambda: others_of(plan, shard.index),
        is_planned=True,
    )


def _chosen(inventory: Inventory, uids: Sequence[str]) -> Sequence[SeriesSource]:
    if not uids:
        return inventory.sources
    index = {source.uid: i for i, source in enumerate(inventory.sources)}
    if missing := [u for u in uids if u not in index]:
        known = ", ".join(list(index)[:3])
        raise DataError(
            f"no series {', '.join(missing)} under {inventory.root}; there are {len(index)}, such as {known}"
        )
    return [inventory.sources[index[u]] for u in dict.fromkeys(uids)]


def _is_of_no_series(layout: CacheLayout, uid: str) -> bool:
    """Return True if there is a record of ``uid`` only because a table named it."""
    try:
        record = read_record(layout.record(uid))
    except (CacheError, FileNotFoundError):
        return False
    return record.reason == Reason.NO_FILES and record.detail.startswith(_NAMED_IN)
