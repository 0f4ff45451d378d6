"""Planner: what the data hold against what the cache holds -> the series that are missing, and all to know of each.

What needs no decoding is done here, too, before anything is built: annotations that changed, records of series that
only a table names, records of what there is no more.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from aneurysm.cache.folder import cached_series, done_series
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.metadata import read_record
from aneurysm.errors import CacheError, DataError, PlanError, Reason
from aneurysm.precaching.build_series import record_of
from aneurysm.precaching.destination import Destination
from aneurysm.precaching.expected_seconds import CostModel
from aneurysm.precaching.partition import Shard, deal
from aneurysm.precaching.plan import Counts, Plan, PlanDocument, PlannedSeries, dealt, others_of, write_plan
from aneurysm.precaching.plan_folder import PlanFolder
from aneurysm.precaching.publish import publish_record, sweep
from aneurysm.precaching.relabel import Annotations, Update, relabel
from aneurysm.precaching.write_errors import translate_write_errors
from aneurysm.processes.children import Limits, Runner
from aneurysm.processes.threads import map_io
from aneurysm.rawdata.facts import SeriesFacts
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
        All its series, also those that were done before, or are beyond a limit.
    done
        Those of them that were done before.
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
    done: set[str]
    whole: Counts = field(default_factory=Counts)
    updates: list[Update] = field(default_factory=list)
    has_labels: bool = True
    others: Callable[[], Iterable[PlannedSeries]] = tuple
    is_planned: bool = False
    finish: Callable[[], None] = _nothing


class Planner:
    """
    Compares ``data`` with the cache at ``place``.

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
        self.tables = data.tables()
        self.sources = _chosen(self.inventory, choice.series)
        self._done: set[str] = set()
        self._cached: set[str] = set()
        self._known = Annotations(self.tables, None)

    def task(self, shard: Shard | None, limit: int | None) -> Task:
        """
        Return what this process is to do: all, or of all series, dealt out by their bytes, its part.

        Every task that sees the same data comes to the same parts, at any time, without a word between them.
        """
        mine, extents = self.sources, dict[str, SeriesFacts]()
        if shard:
            extents = self._data.extents(mine)
            part = set(deal({uid: extent.bytes for uid, extent in extents.items()}, shard.count)[shard.index])
            mine = [s for s in mine if s.uid in part]
        self._open()
        todo = self._missing(mine)
        extents |= self._data.extents([s for s in todo if s.uid not in extents])
        todo.sort(key=lambda s: (-extents[s.uid].bytes, s.uid))
        todo = todo[:limit]
        with translate_write_errors(self._place.layout.root):
            self._place.check_space(todo, self._spec, self._processes, self._limits)
        done = {s.uid for s in mine} & self._wanted_before() - {s.uid for s in todo}
        updates = self._settle(mine, {s.uid for s in todo}, whole=shard is None or shard.index == 0)
        planned = [self._planned(s, extents[s.uid]) for s in todo]
        own = {s.uid for s in mine}

        def others() -> list[PlannedSeries]:
            return [self._planned(s, extents[s.uid]) for s in self.sources if s.uid not in own]

        return Task(
            self.inventory,
            planned,
            [s.uid for s in mine],
            done,
            self._counts(),
            updates,
            self.tables.has_labels,
            others if shard else tuple,
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
        todo = self._missing(self.sources)
        facts = self._data.facts(todo, self._workers, self._limits, self._processes)
        todo.sort(key=lambda s: (-facts[s.uid].bytes, s.uid))
        with translate_write_errors(self._place.layout.root):
            self._place.check_space(todo, self._spec, self._processes, self._limits)
        updates = self._settle(self.sources, {s.uid for s in todo}, whole=True)
        with translate_write_errors(self._place.layout.root):
            self._place.refresh()  # sends what was recorded
        planned = [self._planned(s, facts[s.uid], costs.seconds(facts[s.uid])) for s in todo]
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
        return write_plan(folder, about, dealt(planned, count), once=once), updates

    def _open(self) -> None:
        """Open the cache, and look at what is there."""
        layout = self._place.layout
        with translate_write_errors(layout.root):
            self._place.open(self._spec)
            sweep(layout)
            self._done, self._cached = done_series(layout), cached_series(layout)
        self._known = Annotations(self.tables, self._data.find_masks())

    def _wanted_before(self) -> set[str]:
        """Return the series that count as done, whatever is to be built again."""
        return self._cached if self._choice.retry_failed else self._done

    def _counts(self) -> Counts:
        done = set() if self._choice.overwrite else self._wanted_before() & {s.uid for s in self.sources}
        return Counts(len(self.sources), len(done), len(done - self._cached))

    def _missing(self, sources: Sequence[SeriesSource]) -> list[SeriesSource]:
        """Return those of ``sources`` that are to be built."""
        done = set() if self._choice.overwrite else self._wanted_before()
        return [s for s in sources if s.uid not in done]

    def _planned(self, source: SeriesSource, facts: SeriesFacts, seconds: float = 0.0) -> PlannedSeries:
        mask = (self._known.masks or {}).get(source.uid)
        return PlannedSeries(source, self.tables.of(source.uid), mask, facts, seconds)

    def _settle(self, sources: Sequence[SeriesSource], building: Collection[str], *, whole: bool) -> list[Update]:
        """
        Bring the annotations of those of ``sources`` that are done, and not being built, up to tables and masks.

        With ``whole`` also do what one task does for all: records of what is in tables alone, or nowhere any more.
        """
        place = self._place
        stale = [s.uid for s in sources if s.uid in self._done and s.uid not in building]
        with translate_write_errors(place.layout.root):
            if whole and not self._choice.series:
                stale += self._record_missing()
                place.remove_records(self._unreadable_before())
            if stale:
                place.refresh(metadata=set(stale))
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

        there = {s.uid for s in self.inventory.sources}
        named = {safe_source(uid).uid: uid for uid in sorted(tables.notes.keys() - there)}
        missing = [uid for name, uid in named.items() if name not in self._done]
        # Each waits for the disk: of 100,000, as where a part of the data is tried, that would be minutes.
        deque(map_io(missing, record), maxlen=0)
        recorded = self._done - self._cached
        if tables.has_labels and tables.has_localizers:
            unnamed = sorted(recorded - there - named.keys())
            self._place.remove_records([uid for uid in unnamed if _is_of_no_series(layout, uid)])
        return [uid for name, uid in named.items() if name == uid and name in recorded]

    def _unreadable_before(self) -> list[str]:
        """Return the records of files that could not be read in an earlier run, and whose series was not known."""
        still = {s.uid for s in self.inventory.sources}
        return sorted(uid for uid in self._done - self._cached - still if uid.startswith(f"{UNREADABLE}-"))


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
        done,
        document.counts,
        has_labels=document.has_labels,
        others=lambda: others_of(plan, shard.index),
        is_planned=True,
    )


def _chosen(inventory: Inventory, uids: Sequence[str]) -> list[SeriesSource]:
    if not uids:
        return inventory.sources
    by_uid = {s.uid: s for s in inventory.sources}
    if missing := [u for u in uids if u not in by_uid]:
        known = ", ".join(list(by_uid)[:3])
        raise DataError(
            f"no series {', '.join(missing)} under {inventory.root}; there are {len(by_uid)}, such as {known}"
        )
    return [by_uid[u] for u in dict.fromkeys(uids)]


def _is_of_no_series(layout: CacheLayout, uid: str) -> bool:
    """Return True if there is a record of ``uid`` only because a table named it."""
    try:
        record = read_record(layout.record(uid))
    except (CacheError, FileNotFoundError):
        return False
    return record.reason == Reason.NO_FILES and record.detail.startswith(_NAMED_IN)
