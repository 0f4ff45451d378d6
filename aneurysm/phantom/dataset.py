"""
Plans -> a data set in the RSNA layout, on disk.

    OUT/
      train.csv  train_localizers.csv  truth.csv
      series/<uid>/<sop>.dcm
      segmentations/<uid>.nii  <uid>_cowseg.nii  (or in a folder <uid>/)
      .building/            while it is being written
        plan.json             with which settings
        done/<uid>.json       what a finished series puts into the tables

Series are built under `.building/` and moved into place; the tables are written last, from `done/`, and then
`.building/` goes. So a run that was killed is resumed by the same command, and a folder without `.building/` is
complete. No byte depends on the number of workers, on who finishes first, or on a resumed run.
"""

from __future__ import annotations

import csv
import errno
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.labels import LABELS
from aneurysm.phantom.acquisition import estimate_bytes
from aneurysm.phantom.plan import SeriesPlan, plan_dataset
from aneurysm.phantom.series import write_series
from aneurysm.phantom.truth import TRUTH_CSV, LesionTruth, SeriesTruth, write_truth
from aneurysm.processes.files import tree_bytes
from aneurysm.processes.threads import limit_threads
from aneurysm.sizes import two_sizes_text

_BUILDING = ".building"
_OWN = ("series", "segmentations", "train.csv", "train_localizers.csv", TRUTH_CSV, _BUILDING)
_FORMAT = 1
"""Raised when the same settings give other bytes: a run that was begun before can't be resumed then."""
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class DatasetSummary:
    """What a run did: series in the data set, how many of them were there already, bytes written, seconds."""

    series: int
    resumed: int
    bytes: int
    seconds: float


def write_dataset(
    out: Path,
    *,
    series: int = 24,
    seed: int = 0,
    size: str = "small",
    difficulty: float = 1.0,
    quirks: bool = True,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetSummary:
    """
    Write a data set of ``series`` series under ``out``, entirely from ``seed``.

    Parameters
    ----------
    out
        An empty folder, one that is not there yet, or one in which the same command was interrupted.
    series, seed, size, difficulty, quirks
        As for `plan_dataset`.
    workers
        Processes.
    overwrite
        Remove a phantom data set that is there. Files of anything else are never removed.
    progress
        Called with (series done, series in all), first before the first.

    Raises
    ------
    UsageError
        A number out of range, or ``out`` is not empty.
    NoSpaceError
        The disk has less room than the data set needs.
    """
    if workers < 1:
        raise UsageError(f"the number of workers must be at least 1, not {workers}")
    plans = plan_dataset(series, seed, size=size, difficulty=difficulty, quirks=quirks)
    settings = {"format": _FORMAT, "series": series, "seed": seed, "size": size, "difficulty": difficulty}
    settings["quirks"] = quirks
    return write_plans(out, plans, settings, workers=workers, overwrite=overwrite, progress=progress)


def write_plans(
    out: Path,
    plans: list[SeriesPlan],
    settings: dict[str, Any] | None = None,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetSummary:
    """Write the given series as a data set; ``settings`` are what must agree for a run to be resumed."""
    import joblib

    started = time.monotonic()
    settings = settings or {"format": _FORMAT, "plans": json.loads(json.dumps([asdict(p) for p in plans]))}
    sizes = {p.uid: estimate_bytes(p) for p in plans}
    building = out / _BUILDING
    replaced = _claim(out, settings, overwrite=overwrite)
    written = [] if replaced else [p.uid for p in plans if _record(building, p.uid).is_file()]
    todo = [p for p in plans if p.uid not in written]
    _check_space(out, sum(sizes[p.uid] for p in todo), replaced)
    _prepare(out, settings, replaced)
    done = len(plans) - len(todo)
    if progress:
        progress(done, len(plans))
    # The largest first, so that no worker is left alone with one at the end.
    todo.sort(key=lambda p: -sizes[p.uid])
    jobs = (joblib.delayed(_build)(plan, out) for plan in todo)
    for _ in joblib.Parallel(n_jobs=min(workers, max(len(todo), 1)), return_as="generator_unordered")(jobs):
        done += 1
        if progress:
            progress(done, len(plans))
    _write_tables(out, plans)
    shutil.rmtree(building)
    total = tree_bytes(out)
    return DatasetSummary(len(plans), len(plans) - len(todo), total, time.monotonic() - started)


def _claim(out: Path, settings: dict[str, Any], *, overwrite: bool) -> list[Path]:
    """Make sure that ``out`` is ours to write: fresh, or begun with the same settings. Return what must go first."""
    try:
        there = sorted(p.name for p in out.iterdir()) if out.exists() else []
    except NotADirectoryError as error:
        raise UsageError(f"{out} is a file, not a folder. Name a folder that is empty or not there yet") from error
    except OSError as error:
        raise UsageError(f"{out} can't be read: {error.strerror}") from error
    previous = _settings_of(out / _BUILDING)
    if not there or previous == settings:
        return []
    if not overwrite:
        what = f"is not empty ({', '.join(there[:3])}{', ...' if len(there) > 3 else ''})"
        if previous is not None:
            what = "holds an unfinished phantom data set of other settings"
        raise UsageError(f"{out} {what}. Name another folder, or replace what phantom wrote there with --overwrite")
    taken = [name for name in there if name in _OWN]
    if taken and previous is None and not (out / TRUTH_CSV).is_file():
        raise UsageError(
            f"{out} holds {', '.join(taken)} and no {TRUTH_CSV}: it is no phantom data set, and --overwrite removes "
            "nothing else. Name another folder"
        )
    return [out / name for name in taken]


def _prepare(out: Path, settings: dict[str, Any], replaced: list[Path]) -> None:
    """Remove what is replaced, and make the folders."""
    try:
        for path in replaced:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (out / _BUILDING / "done").mkdir(parents=True, exist_ok=True)
        for name in ("series", "segmentations"):
            (out / name).mkdir(exist_ok=True)
        _write_json(out / _BUILDING / "plan.json", settings)
    except OSError as error:
        raise UsageError(f"{out} can't be written: {error.strerror}") from error


def _settings_of(building: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((building / "plan.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _check_space(out: Path, needed: int, replaced: list[Path]) -> None:
    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    freed = sum(f.stat().st_size for path in replaced for f in (path, *path.rglob("*")) if f.is_file())
    free = shutil.disk_usage(there).free + freed
    if needed and free < needed + _SPARE_BYTES:
        need, has = two_sizes_text(needed + _SPARE_BYTES, free)
        raise NoSpaceError(
            f"the data set needs about {need} in {out}, and {has} are free. Name a "
            "folder on another disk, or write fewer or smaller series (--series, --size)"
        )


def _build(plan: SeriesPlan, out: Path) -> None:
    """Build one series beside its place, move it there, and then say that it is done."""
    limit_threads(1)
    building = out / _BUILDING
    draft = building / plan.uid
    try:
        shutil.rmtree(draft, ignore_errors=True)
        written = write_series(plan, draft)
        _move(draft / "series" / plan.uid, out / "series" / plan.uid)
        masks = draft / "segmentations"
        for path in sorted(masks.iterdir()) if masks.is_dir() else ():
            _move(path, out / "segmentations" / path.name)
        shutil.rmtree(draft)
        _write_json(_record(building, plan.uid), {"truth": asdict(written.truth), "localizers": written.localizers})
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpaceError(
                f"the disk of {out} is full. The same command goes on from here once there is room"
            ) from error
        raise


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    source.rename(target)


def _record(building: Path, uid: str) -> Path:
    return building / "done" / f"{uid}.json"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content))
    draft.rename(path)


def _write_tables(out: Path, plans: list[SeriesPlan]) -> None:
    """Write the three tables, by UID."""
    truths, rows = [], []
    for plan in sorted(plans, key=lambda p: p.uid):
        content = json.loads(_record(out / _BUILDING, plan.uid).read_text())
        truths.append(_truth(content["truth"]))
        rows += content["localizers"]
    by_uid = {p.uid: p for p in plans}
    train = ([t.uid, *_patient(by_uid[t.uid]), t.modality, *_labels(t)] for t in truths)
    _write_csv(out / "train.csv", ("SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS), train)
    columns = ("SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location")
    _write_csv(out / "train_localizers.csv", columns, rows)
    write_truth(out / TRUTH_CSV, truths)


def _truth(content: dict[str, Any]) -> SeriesTruth:
    lesions = tuple(LesionTruth(**{k: _tuple(v) for k, v in one.items()}) for one in content.pop("lesions"))
    return SeriesTruth(**{k: _tuple(v) for k, v in content.items()}, lesions=lesions)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _labels(truth: SeriesTruth) -> list[int]:
    sites = {lesion.site for lesion in truth.lesions}
    return [*(int(label in sites) for label in LABELS[:13]), int(bool(sites))]


def _patient(plan: SeriesPlan) -> tuple[int, str]:
    """Age and sex: aneurysms are commoner in women, and after forty."""
    rng = plan.streams("patient")
    age = rng.normal(60 if plan.sites else 56, 13)
    return int(min(max(age, 18), 89)), "Female" if rng.random() < (0.7 if plan.sites else 0.55) else "Male"


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
