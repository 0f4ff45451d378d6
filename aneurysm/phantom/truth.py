"""
truth.csv: what each series was made to be. Only tests read it.

One row for each aneurysm, and one for a series that has none; what concerns the series is repeated in its rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aneurysm.types import Point, point

TRUTH_CSV = "truth.csv"


@dataclass(frozen=True)
class LesionTruth:
    """
    One aneurysm.

    ``center_lps`` and ``radius_mm`` are those of the sac (of the ball of its volume); ``side_mm`` is its distance from
    the head's mid-plane, positive to the left. ``mark`` says how it is marked in train_localizers.csv: ``exact``,
    ``copy`` (on a slice that is stored twice), ``same_point`` (a second site at the point of another), ``missing``,
    ``unknown_image``, or ``not_imaged`` (no slice comes near it). ``point_lps`` is the marked point: the sac's centre
    moved to the middle of the nearest slice.
    """

    site: str
    value: int
    center_lps: Point
    radius_mm: float
    side_mm: float
    mark: str = "exact"
    point_lps: Point | None = None
    sop_uid: str = ""
    x: float | None = None
    y: float | None = None
    frame: int | None = None

    @property
    def placeable(self) -> bool:
        """Whether the mark leads to a point of the series."""
        return self.mark in ("exact", "copy", "same_point")


@dataclass(frozen=True)
class SeriesTruth:
    """
    One series.

    ``rejected`` is the reason code with which `precache` must refuse it, "" if it must cache it. With ``patient_space``
    false the header gives no geometry: all points then are in the space that readers assume (acquisition.py).
    ``origin_lps`` and ``left_lps`` are a point on the head's mid-plane and its normal. ``gap_mm`` is the usual distance
    of slices.
    """

    uid: str
    index: int
    modality: str
    size: str
    quirks: tuple[str, ...]
    rejected: str
    plane: str
    slices: int
    rows: int
    columns: int
    gap_mm: float
    patient_space: bool
    mask: bool
    origin_lps: Point
    left_lps: Point
    features: tuple[str, ...] = ()
    lesions: tuple[LesionTruth, ...] = field(default=())


_SERIES = (
    "series_uid", "index", "modality", "size", "quirks", "expected", "reason", "plane", "slices", "rows", "columns",
    "gap_mm", "patient_space", "mask", "origin_lps_mm", "left_lps", "features", "n_lesions",
)  # fmt: skip
_LESION = (
    "location", "mask_value", "x_mm", "y_mm", "z_mm", "radius_mm", "side_mm", "mark", "point_x_mm", "point_y_mm",
    "point_z_mm", "sop_uid", "column", "row", "frame",
)  # fmt: skip


def write_truth(path: Path, series: Iterable[SeriesTruth]) -> None:
    """Write truth.csv, in the order given."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_SERIES, *_LESION])
        for truth in series:
            start = _series_cells(truth)
            for lesion in truth.lesions:
                writer.writerow([*start, *_lesion_cells(lesion)])
            if not truth.lesions:
                writer.writerow([*start, *[""] * len(_LESION)])


def read_truth(path: Path) -> list[SeriesTruth]:
    """Read truth.csv, given itself or its folder."""
    path = path / TRUTH_CSV if path.is_dir() else path
    out: dict[str, SeriesTruth] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            uid = row["series_uid"]
            lesions = out[uid].lesions if uid in out else ()
            if row["location"]:
                lesions = (*lesions, _lesion(row))
            out[uid] = SeriesTruth(
                uid=uid,
                index=int(row["index"]),
                modality=row["modality"],
                size=row["size"],
                quirks=tuple(row["quirks"].split()),
                rejected=row["reason"],
                plane=row["plane"],
                slices=int(row["slices"]),
                rows=int(row["rows"]),
                columns=int(row["columns"]),
                gap_mm=float(row["gap_mm"]),
                patient_space=row["patient_space"] == "1",
                mask=row["mask"] == "1",
                origin_lps=point(row["origin_lps_mm"].split()),
                left_lps=point(row["left_lps"].split()),
                features=tuple(row["features"].split()),
                lesions=lesions,
            )
    return list(out.values())


def _series_cells(t: SeriesTruth) -> list[Any]:
    return [
        t.uid,
        t.index,
        t.modality,
        t.size,
        " ".join(t.quirks),
        "rejected" if t.rejected else "cached",
        t.rejected,
        t.plane,
        t.slices,
        t.rows,
        t.columns,
        round(t.gap_mm, 6),
        int(t.patient_space),
        int(t.mask),
        " ".join(f"{v:.6f}" for v in t.origin_lps),
        " ".join(f"{v:.8f}" for v in t.left_lps),
        " ".join(t.features),
        len(t.lesions),
    ]


def _lesion_cells(lesion: LesionTruth) -> list[Any]:
    point: tuple[Any, ...] = ("", "", "") if lesion.point_lps is None else lesion.point_lps
    return [
        lesion.site,
        lesion.value,
        *(round(v, 5) for v in lesion.center_lps),
        round(lesion.radius_mm, 4),
        round(lesion.side_mm, 4),
        lesion.mark,
        *(round(v, 5) if v != "" else "" for v in point),
        lesion.sop_uid,
        *("" if v is None else v for v in (lesion.x, lesion.y, lesion.frame)),
    ]


def _lesion(row: dict[str, str]) -> LesionTruth:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    return LesionTruth(
        site=row["location"],
        value=int(row["mask_value"]),
        center_lps=point([row["x_mm"], row["y_mm"], row["z_mm"]]),
        radius_mm=float(row["radius_mm"]),
        side_mm=float(row["side_mm"]),
        mark=row["mark"],
        point_lps=point([row[f"point_{a}_mm"] for a in "xyz"]) if row["point_x_mm"] else None,
        sop_uid=row["sop_uid"],
        x=number("column"),
        y=number("row"),
        frame=int(row["frame"]) if row["frame"] else None,
    )
