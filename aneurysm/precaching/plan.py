"""Plan: what each of several tasks is to do, so that none has to look through the data. Written, read and checked here.

    PLAN/
      plan.json             of what it is: data, cache, spec, counts, fingerprints; of each part its name and SHA-256
      000003-<hash>.part    a line for each series of part 3: all that it takes to build it
      000003.done           part 3 came to its end; of an array's own plan alone, which goes with the last of them

Parts are named by their content, and plan.json is written last: at every moment there is the old plan, the new one, or
none. Two plans of the same data and cache have the same bytes.

A plan names folders or files of the data. Who may write one decides what a task reads: it is read as strictly as what
strangers wrote, and reaches no file outside of the data but those that links in them name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aneurysm.documents import format_problem, parse_json
from aneurysm.errors import PlanError, Reason, SpecError
from aneurysm.labels import LABELS
from aneurysm.precaching.plan_folder import DOCUMENT, PlanFolder
from aneurysm.rawdata.bucket import BucketSource
from aneurysm.rawdata.facts import SeriesFacts
from aneurysm.rawdata.fingerprint import DataFingerprint
from aneurysm.rawdata.folder import SeriesSource, safe_source
from aneurysm.rawdata.tables import Localizer, SeriesNotes
from aneurysm.remote.url import is_url
from aneurysm.spec import CacheSpec, parse_spec

PLAN_VERSION: Final = 1
_PLAIN: Final = "/ !#$&'()*+,;=:@[]~"
"""Characters that stand in paths as they are, beside letters and digits."""
_MOST_DOCUMENT: Final = 64 * 2**20
_AGAIN: Final = "Make it again: aneurysm plan"

_Count = Annotated[int, Field(ge=0, le=2**60)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Text = Annotated[str, Field(max_length=4096)]
_ModelType = TypeVar("_ModelType", bound=BaseModel)


@dataclass(frozen=True)
class PlannedSeries:
    """All that a task needs to know of a series to build it; ``seconds`` are expected, 0 if nobody has asked."""

    source: SeriesSource
    notes: SeriesNotes
    mask: Path | str | None
    facts: SeriesFacts
    seconds: float = 0.0


@dataclass(frozen=True)
class Counts:
    """Series of all tasks together: how many, those that need not be built, and those of these without a volume."""

    series: int = 0
    done: int = 0
    not_cached: int = 0


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class PartEntry(_Model):
    """One part: the name and the SHA-256 of its file, and what the series in it come to."""

    name: Annotated[str, Field(pattern=r"^\d{6}-[0-9a-f]{16}\.part$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    series: _Count
    bytes: _Count
    seconds: _Seconds


class PlanDocument(_Model):
    """
    Of what a plan is.

    Attributes
    ----------
    data, cache
        Their folders or URLs; ``layout`` is that of the data, ``rsna`` or ``tree``.
    spec
        The resolved spec as TOML, with its name and digest and the recipe beside it.
    series, done, not_cached
        See `Counts`.
    retry_failed
        Whether series that are recorded as not cached were dealt out again; ``overwrite``: also those that are cached.
    has_labels
        Whether there is a train.csv.
    """

    format_version: Literal[1] = PLAN_VERSION
    data: _Text
    layout: Literal["rsna", "tree"]
    cache: _Text
    spec: str
    spec_name: _Text
    digest: _Text
    recipe: int
    series: _Count
    done: _Count
    not_cached: _Count
    retry_failed: bool
    overwrite: bool
    has_labels: bool
    fingerprint: DataFingerprint
    parts: list[PartEntry]

    @property
    def missing(self) -> int:
        """Series in all parts."""
        return sum(part.series for part in self.parts)

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def seconds(self) -> float:
        """Expected seconds of one core for all parts."""
        return math.fsum(part.seconds for part in self.parts)

    @property
    def counts(self) -> Counts:
        """Of all tasks together."""
        return Counts(self.series, self.done, self.not_cached)


class _LocalizerEntry(_Model):
    row: int
    series_uid: str
    sop_uid: str
    location: str
    x: float | None
    y: float | None
    frame: int | None
    problem: str


class _Line(_Model):
    """One series; ``folder``, ``files`` and ``mask`` are relative to the data, ``labels`` in the order of `LABELS`."""

    uid: str
    folder: str | None = None
    files: list[str] | None = None
    sizes: list[_Count] | None = None
    problem: str = ""
    lost: list[str] | None = None
    mask: str | None = None
    labels: list[Literal[0, 1] | None] | None = None
    modality: str = ""
    localizers: list[_LocalizerEntry] = []
    n_files: _Count = 0
    bytes: _Count = 0
    frames: _Count = 0
    voxels: _Count = 0
    syntax: str = ""
    seconds: _Seconds = 0.0


@dataclass(frozen=True)
class Plan:
    """A plan that is in ``folder``."""

    folder: PlanFolder
    document: PlanDocument

    @property
    def run(self) -> str:
        """What its tasks together are called, as far as nobody gives them a name: one for plans of the same bytes."""
        names = "".join(part.sha256 for part in self.document.parts)
        return f"plan-{hashlib.sha256(names.encode()).hexdigest()[:12]}"

    @property
    def count(self) -> int:
        """How many parts there are."""
        return len(self.document.parts)

    def spec(self) -> CacheSpec:
        """Return the spec. Raises `PlanError` if this version of the program can't build what the plan is for."""
        try:
            spec = parse_spec(self.document.spec, "the plan's spec")
        except SpecError as error:
            raise PlanError(f"{self.folder.name}: {error}. {_AGAIN}") from error
        if what := spec.mismatch():
            raise PlanError(f"the spec of {self.folder.name} can't be used: {what}. All tasks need the same. {_AGAIN}")
        return spec

    def part(self, index: int) -> list[PlannedSeries]:
        """
        Return the series of a part, as they are to be built, one after the other.

        Raises
        ------
        PlanError
            It is missing, or was changed or damaged.
        """
        entry = self.document.parts[index]
        digest = hashlib.sha256()
        series = []
        try:
            for line in self.folder.lines(entry.name):
                digest.update(line)
                series.append(_series_of(_parsed(_Line, line), self.document.data))
        except FileNotFoundError as error:
            raise PlanError(
                f"part {index} of {self.folder.name} is missing: was the plan made again just now? Start the task again"
            ) from error
        except (OSError, ValueError) as error:
            raise self._damaged(index) from error
        if digest.hexdigest() != entry.sha256 or len(series) != entry.series:
            raise self._damaged(index)
        return series

    def _damaged(self, index: int) -> PlanError:
        return PlanError(f"part {index} of {self.folder.name} was changed or damaged since it was written. {_AGAIN}")

    def finish(self, index: int) -> None:
        """Note that a part came to its end; remove the plan, which must be an array's own, with the last of them."""
        self.folder.write(f"{index:06}.done", b"")
        if sum(name.endswith(".done") for name in self.folder.names()) >= self.count:
            self.folder.remove()


def write_plan(
    folder: PlanFolder, about: PlanDocument, parts: Iterable[Iterable[PlannedSeries]], *, once: bool = False
) -> Plan:
    """
    Write a plan of ``parts``, whose other facts are those of ``about``; return the one that is in ``folder`` then.

    Another one is replaced, unless ``once`` is asked for: of several who write at the same time the first then counts.
    """
    before, entries = folder.names(), []
    for index, part in enumerate(parts):
        lines, size, seconds = list[str](), 0, list[float]()
        for one in part:
            lines.append(_line_of(one, about.data))
            size += one.facts.bytes
            seconds.append(one.seconds)
        content = "".join(lines).encode("ascii")
        sha256 = hashlib.sha256(content).hexdigest()
        entry = PartEntry(
            name=f"{index:06}-{sha256[:16]}.part",
            sha256=sha256,
            series=len(lines),
            bytes=size,
            seconds=round(math.fsum(seconds), 3),
        )
        folder.write(entry.name, content)
        entries.append(entry)
    document = about.model_copy(update={"parts": entries})
    content = json.dumps(document.model_dump(mode="json"), indent=1, sort_keys=True).encode("ascii") + b"\n"
    if once:
        folder.create(DOCUMENT, content)
    else:
        folder.write(DOCUMENT, content)
    plan = read_plan(folder)
    own = {entry.name for entry in plan.document.parts}
    # Of what others may be writing now nothing goes, only what was there when we began; and ours, if another counts.
    unwanted = [entry.name for entry in entries] if once else before
    folder.delete(name for name in unwanted if name not in own and name != DOCUMENT)
    return plan


def read_plan(folder: PlanFolder) -> Plan:
    """
    Return the plan in ``folder``.

    Raises
    ------
    PlanError
        There is none; or it can't be read, was damaged, or is of another version.
    """
    try:
        document = _parsed(PlanDocument, folder.read(DOCUMENT, _MOST_DOCUMENT))
    except FileNotFoundError as error:
        raise PlanError(
            f"there is no plan at {folder.name}: it has no {DOCUMENT}. `aneurysm plan` makes one"
        ) from error
    except NotADirectoryError as error:
        raise PlanError(f"there is no plan at {folder.name}: it is a file") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise PlanError(f"{folder.name} is no plan, or a damaged one: {DOCUMENT}: {why}. {_AGAIN}") from error
    if not document.parts:
        raise PlanError(f"{folder.name} is no plan: it has no parts. {_AGAIN}")
    return Plan(folder, document)


def _parsed(kind: type[_ModelType], content: bytes) -> _ModelType:
    """Return a model by JSON. Raises `ValueError`, which repeats no value."""
    try:
        return kind.model_validate(parse_json(content))
    except ValidationError as error:
        first = dict(error.errors()[0])
        raise ValueError(format_problem(first).partition(" (found")[0]) from None


def _relative(path: str, data: str) -> str:
    """Return a path below ``data``, percent-encoded: names need not be UTF-8, and JSON is."""
    return quote(path.removeprefix(data).lstrip("/"), safe=_PLAIN, errors="surrogateescape")


def _absolute(path: str, data: str) -> str:
    """Return the path of a file of the data. Raises `ValueError` if it would lie elsewhere."""
    return f"{data.rstrip('/')}/{_within(path)}"


def _within(path: str) -> str:
    path = unquote(path, errors="surrogateescape")
    if not path or "\0" in path or any(part in ("..", ".", "") for part in path.split("/")):
        raise ValueError("a path leaves the data")
    return path


def _line_of(planned: PlannedSeries, data: str) -> str:
    source, notes, facts = planned.source, planned.notes, planned.facts
    line: dict[str, Any] = {"uid": source.uid, "n_files": facts.files, "bytes": facts.bytes}
    if isinstance(source, BucketSource):
        if source.prefix:
            line |= {"folder": _relative(source.prefix, "")}
        else:
            line |= {"files": [_relative(key, "") for key in source.keys], "sizes": source.sizes}
    elif source.folder is not None:
        line |= {"folder": _relative(str(source.folder), data)}
    else:
        line |= {"files": [_relative(name, data) for name in source.files]}
    line |= {
        "problem": source.problem,
        "lost": None if source.lost is None else [str(source.lost[0]), source.lost[1]],
        "mask": None if planned.mask is None else _relative(str(planned.mask), data),
        "labels": None if notes.labels is None else [notes.labels.get(label) for label in LABELS],
        "modality": notes.modality,
        "localizers": [_localizer_entry(row) for row in notes.localizers],
        "frames": facts.frames,
        "voxels": facts.voxels,
        "syntax": facts.syntax,
        "seconds": planned.seconds,
    }
    kept = {key: value for key, value in line.items() if key == "files" or value not in ("", 0, None, [])}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")) + "\n"


def _localizer_entry(row: Localizer) -> dict[str, Any]:
    point = {name: value if math.isfinite(value) else None for name, value in (("x", row.x), ("y", row.y))}
    return {
        "row": row.row,
        "series_uid": row.series_uid,
        "sop_uid": row.sop_uid,
        "location": row.location,
        "frame": row.frame,
        "problem": row.problem,
    } | point


def _series_of(line: _Line, data: str) -> PlannedSeries:
    """Return what a line says. Raises `ValueError` if it says what no plan of ours would."""
    if safe_source(line.uid).problem or (line.folder is None) == (line.files is None):
        raise ValueError("a series is none")
    lost = None
    if line.lost is not None:
        reason, detail = line.lost
        lost = (Reason(reason), detail)
    if is_url(data):
        keys = tuple(_within(key) for key in line.files or ())
        if len(keys) != len(line.sizes or ()):
            raise ValueError("sizes of other files")
        source: SeriesSource = BucketSource(
            line.uid, problem=line.problem, lost=lost, url=data, keys=keys, sizes=tuple(line.sizes or ()),
            prefix="" if line.folder is None else _within(line.folder),
        )  # fmt: skip
    else:
        folder = None if line.folder is None else Path(_absolute(line.folder, data))
        files = tuple(_absolute(name, data) for name in line.files or ())
        source = SeriesSource(line.uid, folder, files, line.problem, lost)
    mask: Path | str | None = None
    if line.mask is not None:
        mask = _absolute(line.mask, data) if is_url(data) else Path(_absolute(line.mask, data))
    facts = SeriesFacts(line.n_files, line.bytes, line.frames, line.voxels, line.syntax)
    labels: dict[str, int] | None = None
    if line.labels is not None:
        # In this order they stand in a volume, too, whose bytes must not depend on a plan.
        labels = {label: value for label, value in zip(LABELS, line.labels, strict=True) if value is not None}
    localizers = tuple(_localizer(entry) for entry in line.localizers)
    return PlannedSeries(source, SeriesNotes(line.modality, labels, localizers), mask, facts, line.seconds)


def _localizer(entry: _LocalizerEntry) -> Localizer:
    x, y = (math.nan if value is None else value for value in (entry.x, entry.y))
    return Localizer(entry.row, entry.series_uid, entry.sop_uid, entry.location, x, y, entry.frame, entry.problem)


def others_of(plan: Plan, index: int) -> Iterator[PlannedSeries]:
    """Yield the series of all parts but one, part by part; of parts that are gone with their plan nothing."""
    for other in range(plan.count):
        if other != index:
            try:
                yield from plan.part(other)
            except PlanError:
                return
