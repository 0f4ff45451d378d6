"""Data, before anything is trained -> Exploration, all that the page about them is made from."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aneurysm.labels import LABELS, MODALITIES
from aneurysm.report.eda_ages import AgeTable, age_table
from aneurysm.report.eda_labels import LabelledSeries, MarkedSeries, PointCounts, count_points
from aneurysm.spec import CacheSpec, load_spec

if TYPE_CHECKING:  # pydicom comes with them
    from aneurysm.annotations.marked_slice import MarkedSlice
    from aneurysm.precaching.header_facts import HeaderFacts
    from aneurysm.processes.children import Limits, Runner
    from aneurysm.rawdata.demographics import Demographics
    from aneurysm.rawdata.folder import SeriesSource
    from aneurysm.rawdata.tables import SeriesNotes, Tables

NOT_KNOWN_MODALITY = "not known"


@dataclass(frozen=True)
class ExploredSeries:
    """One series of the data: what its headers and the tables say; ``patient`` is a number, from 0."""

    facts: HeaderFacts
    notes: SeriesNotes
    modality: str
    patient: int


@dataclass(frozen=True)
class Sample:
    """A series that is shown; ``image`` is None if it can't be read, for the reason of ``problem``."""

    uid: str
    modality: str
    image: MarkedSlice | None
    problem: str = ""


@dataclass(frozen=True)
class CacheRecords:
    """
    What a cache has of the data's series.

    Attributes
    ----------
    cached, missing
        How many are volumes; of how many there is nothing.
    reasons
        Why others are not cached, with their number, and the UID and detail of one of them.
    """

    cached: int
    missing: int
    reasons: dict[str, tuple[int, str, str]]

    @property
    def not_cached(self) -> int:
        """How many have a record of why there is no volume."""
        return sum(n for n, _, _ in self.reasons.values())


@dataclass(frozen=True)
class Exploration:
    """
    The data.

    Attributes
    ----------
    layout
        ``rsna`` or ``tree``.
    series
        All, in the order of their UIDs.
    modalities
        Names that occur, in the order in which they are shown.
    patients
        How many there are; a series without PatientID is of a patient of its own.
    has_labels, has_points
        Whether there is a train.csv, and a train_localizers.csv.
    rows_without_series
        Series that train.csv names and the data lack.
    labelled
        Those that train.csv has labels of.
    ages
        None if train.csv gives no age with a sex.
    points
        None if there is no train_localizers.csv.
    ignored
        Files that are no part of any series, in words.
    spec
        By which a series is held to be fit, or not.
    records
        None if no cache was named.
    samples
        Of each modality, some.
    """

    layout: str
    series: list[ExploredSeries]
    modalities: list[str]
    patients: int
    has_labels: bool
    has_points: bool
    rows_without_series: int
    labelled: LabelledSeries
    ages: AgeTable | None
    points: PointCounts | None
    ignored: str
    spec: CacheSpec
    records: CacheRecords | None
    samples: list[Sample]

    def of(self, modality: str | None) -> list[ExploredSeries]:
        """Return the series of a modality, or all."""
        return [s for s in self.series if modality in (None, s.modality)]

    @property
    def fit(self) -> list[ExploredSeries]:
        """Those that no header speaks against."""
        return [s for s in self.series if not s.facts.reason]

    @property
    def rejections(self) -> dict[str, tuple[int, str, str]]:
        """Why series would be rejected by their headers: how many, and the UID and detail of one of them."""
        return _by_reason((s.facts.uid, s.facts.reason, s.facts.detail) for s in self.series if s.facts.reason)


def explore(
    data: str | Path,
    *,
    cache: str | Path | None = None,
    spec: str | Path = "rsna-1mm",
    workers: int = 1,
    timeout_s: float | None = None,
    memory_mb: int | None = None,
    cases: int = 4,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Exploration:
    """
    Read the tables, the headers of all files, and the pixels of some.

    Parameters
    ----------
    cache
        A cache of the data: its records say what was rejected, and ``spec`` is its own.
    spec
        By which it is said what would be rejected.
    workers
        Processes that read; 0, for debugging, is this one.
    timeout_s, memory_mb
        What one series may take.
    cases
        How many series of each modality are shown.
    on_progress
        Is told how many series are read, of how many.

    Raises
    ------
    UsageError
        The data, a table or the spec can't be used.
    CacheError
        There is no such cache, or it can't be read.
    StoreError
        An object store fails.
    """
    from aneurysm.precaching.header_facts import read_header_facts
    from aneurysm.processes.children import Limits, runner
    from aneurysm.rawdata.bucket import open_data

    limits = Limits(timeout_s, memory_mb)
    recipe, rows = (load_spec(spec), None) if cache is None else _read_cache(cache)
    given = open_data(data)
    tables, people = given.tables(), given.demographics()  # first: a damaged one is told at once
    with runner(workers) as processes:
        inventory = given.find_series(workers, limits, processes)
        sources = sorted(inventory.sources, key=lambda source: source.uid)
        known = {source.uid for source in sources}
        on_progress(0, len(sources))
        asked = [(source, tables.of(source.uid).localizers) for source in sources]
        # The key is nobody's: hashes are compared with each other, and forgotten.
        read = read_header_facts(asked, recipe, secrets.token_bytes(32), workers, limits, processes)
        facts = []
        for one in read:
            facts.append(one)
            on_progress(len(facts), len(sources))
        series = _explored(facts, tables)
        modalities = ordered_modalities({s.modality for s in series})
        samples = _samples(series, sources, modalities, cases, recipe, workers, limits, processes)
    return Exploration(
        layout=inventory.layout,
        series=series,
        modalities=modalities,
        patients=len({s.patient for s in series}),
        has_labels=tables.has_labels,
        has_points=tables.has_localizers,
        rows_without_series=sum(uid not in known and tables.of(uid).labels is not None for uid in tables),
        labelled=_labelled(series),
        ages=_ages(series, people),
        points=count_points(_marked(s) for s in series) if tables.has_localizers else None,
        ignored=str(inventory.ignored),
        spec=recipe,
        records=None if rows is None else _records(rows, known),
        samples=samples,
    )


def ordered_modalities(names: set[str]) -> list[str]:
    """Return the data set's own in their order, then others by name, and in the end what is not known."""
    others = sorted(names - {*MODALITIES, NOT_KNOWN_MODALITY})
    return [m for m in (*MODALITIES, *others, NOT_KNOWN_MODALITY) if m in names]


def _explored(facts: Sequence[HeaderFacts], tables: Tables) -> list[ExploredSeries]:
    numbers: dict[str, int] = {}
    series = []
    for f in facts:
        notes = tables.of(f.uid)
        patient = numbers.setdefault(f.patient or f"series {f.uid}", len(numbers))
        series.append(ExploredSeries(f, notes, notes.modality or f.modality or NOT_KNOWN_MODALITY, patient))
    return series


def _labels_of(notes: SeriesNotes) -> NDArray[np.uint8] | None:
    return None if notes.labels is None else np.array([notes.labels[name] for name in LABELS], np.uint8)


def _labelled(series: Sequence[ExploredSeries]) -> LabelledSeries:
    labelled = [(s, labels) for s in series if (labels := _labels_of(s.notes)) is not None]
    return LabelledSeries(
        np.array([s.modality for s, _ in labelled], np.str_),
        np.array([s.patient for s, _ in labelled], np.int64),
        np.array([labels for _, labels in labelled], np.uint8).reshape(-1, len(LABELS)),
    )


def _marked(series: ExploredSeries) -> MarkedSeries:
    facts = series.facts
    images = facts.images_with_points if facts.frames else None
    return MarkedSeries(series.modality, _labels_of(series.notes), series.notes.localizers, images)


def _ages(series: Sequence[ExploredSeries], people: Mapping[str, Demographics]) -> AgeTable | None:
    """Return the ages of patients: of one with several series the lowest, and the sex if all agree."""
    ages: dict[int, list[int]] = {}
    sexes: dict[int, set[str]] = {}
    for s in series:
        own = people.get(s.facts.uid)
        ages.setdefault(s.patient, []).extend([] if own is None or own.age_years is None else [own.age_years])
        sexes.setdefault(s.patient, set()).update({own.sex} - {""} if own is not None else ())
    patients = [(min(ages[p], default=None), "".join(sexes[p]) if len(sexes[p]) == 1 else "") for p in ages]
    return age_table(patients) if any(age is not None and sex for age, sex in patients) else None


_CacheRow = tuple[str, str, str, str]
"""UID, status, reason and detail."""


def _read_cache(cache: str | Path) -> tuple[CacheSpec, list[_CacheRow]]:
    from aneurysm.cache.folder import read_spec
    from aneurysm.cache.manifest import iter_manifest
    from aneurysm.cache.summary import tables_of

    with tables_of(cache) as layout:
        spec = read_spec(layout)
        rows = iter_manifest(layout.manifest)
        return spec, [(row["series_uid"], row["status"], row["reason"], row["detail"]) for row in rows]


def _records(rows: Iterable[_CacheRow], uids: set[str]) -> CacheRecords:
    """Return what a cache has of some series."""
    own = [row for row in rows if row[0] in uids]
    cached = sum(status == "cached" for _, status, _, _ in own)
    reasons = _by_reason((uid, reason, detail) for uid, status, reason, detail in own if status != "cached")
    return CacheRecords(cached, len(uids) - len(own), reasons)


def _by_reason(rows: Iterable[tuple[str, str, str]]) -> dict[str, tuple[int, str, str]]:
    """Return by reason, the commonest first, how many (uid, reason, detail) there are, and the first of them."""
    counts: Counter[str] = Counter()
    first: dict[str, tuple[str, str]] = {}
    for uid, reason, detail in rows:
        counts[reason] += 1
        first.setdefault(reason, (uid, detail))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {reason: (n, *first[reason]) for reason, n in ordered}


def _samples(
    series: Sequence[ExploredSeries],
    sources: Sequence[SeriesSource],
    modalities: Sequence[str],
    cases: int,
    spec: CacheSpec,
    workers: int,
    limits: Limits,
    processes: Runner,
) -> list[Sample]:
    """Return up to ``cases`` series of each modality, those with points first, and one slice of each."""
    from aneurysm.annotations.marked_slice import read_marked_slices
    from aneurysm.processes.map_batches import map_batches

    chosen = [s for modality in modalities for s in choose_samples(series, modality, cases)]
    by_uid = {source.uid: source for source in sources}
    asked = [(by_uid[s.facts.uid], s.notes.localizers) for s in chosen]
    read = partial(read_marked_slices, spec=spec)
    images = map_batches(read, asked, 1, workers, lambda _, error: f"{error.reason}: {error.detail}", limits, processes)
    return [
        Sample(s.facts.uid, s.modality, None, image)
        if isinstance(image, str)
        else Sample(s.facts.uid, s.modality, image)
        for s, image in zip(chosen, images, strict=True)
    ]


def choose_samples(series: Sequence[ExploredSeries], modality: str, cases: int) -> list[ExploredSeries]:
    """Return series of a modality that are fit, those with points first, in an order that has no other reason."""

    def order(s: ExploredSeries) -> tuple[bool, str]:
        is_marked = s.facts.images_with_points > 0 and not all(p.problem for p in s.notes.localizers)
        return not is_marked, hashlib.sha256(s.facts.uid.encode()).hexdigest()

    fit = [s for s in series if s.modality == modality and not s.facts.reason]
    return sorted(fit, key=order)[:cases]
