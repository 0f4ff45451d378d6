"""A phantom data set and the cache that was made of it -> what does not agree with the truth, one line each."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from aneurysm.phantom.truth import LesionTruth, SeriesTruth, read_truth
from tests.support.cache_paths import volume_path

WITHIN_MM = 0.75
"""How far a lesion in the cache may lie from the truth."""

EXPECTED_DECISION = {
    "tilt": "gantry_tilt",
    "jittered_gaps": "uneven_slices",
    "doubled_gaps": "uneven_slices",
    "missing_slices": "uneven_slices",
    "stray_slices": "dropped_slices",
    "duplicates": "duplicate_slices",
    "marked_duplicate": "duplicate_slices",
    "scouts": "projections_dropped",
    "small_slices": "minority_dropped",
    "colour_slice": "minority_dropped",
    "stray_files": "unreadable_files",
    "echoes": "several_volumes",
    "phases": "several_volumes",
    "magnitude_phase": "several_volumes",
    "dual_energy": "several_volumes",
    "time_blocks": "several_volumes",
    "stripped_multiframe": "fallback_geometry",
    "default_geometry": "fallback_geometry",
    "already_hu": "already_hu",
    "unreadable_few": "unreadable_slice",
    "mask": "mask_placed",
    "nested_mask": "mask_placed",
    "regridded_mask": "mask_placed",
}
"""Quirk -> the code that the volume's decisions must show."""


@dataclass
class Cached:
    """One volume of a cache."""

    attrs: dict[str, Any]
    voxels: np.ndarray
    mask: np.ndarray | None

    @property
    def affine(self) -> np.ndarray:
        return np.array(self.attrs["affine_lps"])

    def physical(self, zyx: np.ndarray) -> float:
        intensity = self.attrs["intensity"]
        k, i, j = np.rint(zyx).astype(int)
        return float(self.voxels[k, i, j]) * intensity["scale"] + intensity["offset"]


def open_volume(cache: Path, uid: str) -> Cached:
    group = zarr.open_group(volume_path(cache, uid), mode="r")
    mask = np.asarray(group["labels/vessels/0"]) if "labels/vessels" in group else None
    return Cached(dict(group.attrs["aneurysm"]), np.asarray(group["0"]), mask)


def compare(data: Path, cache: Path) -> list[str]:
    """Return every disagreement; none if all is well."""
    with (cache / "manifest.csv").open(newline="") as file:
        manifest = {row["series_uid"]: row for row in csv.DictReader(file)}
    problems: list[str] = []
    for truth in read_truth(data):
        where = f"{truth.uid} ({truth.modality}; {' '.join(truth.quirks) or 'plain'})"
        row = manifest.get(truth.uid)
        if row is None:
            problems.append(f"{where}: not in the manifest")
            continue
        expected = ("rejected", truth.rejected) if truth.rejected else ("cached", "")
        if (row["status"], row["reason"]) != expected:
            problems.append(
                f"{where}: {row['status']} {row['reason']} ({row['detail']}), expected {' '.join(expected)}"
            )
        elif not truth.rejected:
            problems += [f"{where}: {p}" for p in _compare_volume(truth, open_volume(cache, truth.uid))]
    return problems


def _compare_volume(truth: SeriesTruth, volume: Cached) -> list[str]:
    problems = []
    if volume.attrs["modality"] != truth.modality:
        problems.append(f"modality {volume.attrs['modality']}")
    codes = {d["code"] for d in volume.attrs["decisions"]}
    expected = {q: EXPECTED_DECISION[q] for q in truth.quirks if q in EXPECTED_DECISION}
    problems += [f"no decision {c} for {q}, only {sorted(codes)}" for q, c in expected.items() if c not in codes]
    if truth.mask != (volume.mask is not None):
        problems.append(f"mask {'missing' if truth.mask else 'from nowhere'}")
    placed = {(p["location"], tuple(np.round(p["lps_mm"], 1))): p for p in volume.attrs["lesions"]}
    marks = [t for t in truth.lesions if t.placeable]
    if len(placed) != len(marks):
        problems.append(
            f"{len(placed)} lesions placed, {len(marks)} marked; unplaced {volume.attrs['unplaced_lesions']}"
        )
    for lesion in marks:
        problems += [f"{lesion.site}: {p}" for p in _compare_lesion(truth, lesion, volume)]
    unplaced = {u["location"]: u["reason"] for u in volume.attrs["unplaced_lesions"]}
    problems += [
        f"{lesion.site}: the mark on an unknown image is {unplaced.get(lesion.site)}"
        for lesion in truth.lesions
        if lesion.mark == "unknown_image" and unplaced.get(lesion.site) != "image_not_in_series"
    ]
    return problems


def _compare_lesion(truth: SeriesTruth, lesion: LesionTruth, volume: Cached) -> list[str]:
    found = [p for p in volume.attrs["lesions"] if p["location"] == lesion.site]
    if len(found) != 1:
        return [f"placed {len(found)} times"]
    problems = []
    lps, zyx = np.array(found[0]["lps_mm"]), np.array(found[0]["zyx"])
    if np.abs((volume.affine @ [*zyx, 1])[:3] - lps).max() > 0.01:
        problems.append("zyx and lps_mm don't agree")
    assert lesion.point_lps is not None
    to_mark = float(np.linalg.norm(lps - lesion.point_lps))
    if to_mark > 0.02:
        problems.append(f"{to_mark:.3f} mm from the marked point")
    # Across thick slices a mark can't be nearer to the sac's centre than half a gap; along them it can.
    off = lps - np.array(lesion.center_lps)
    normal = np.array(volume.attrs["source"]["orientation"]).reshape(2, 3)
    across = float(off @ np.cross(normal[0], normal[1]))
    along = float(np.sqrt(max(off @ off - across**2, 0)))
    distance = (
        float(np.linalg.norm(off)) if truth.gap_mm <= 2 * WITHIN_MM and "missing_slices" not in truth.quirks else along
    )
    if distance > WITHIN_MM:
        problems.append(f"{distance:.2f} mm from the truth")
    if truth.patient_space:
        problems += _compare_side(truth, lesion, volume, lps, zyx)
    if volume.mask is not None:
        k, i, j = np.rint(zyx).astype(int)
        around = volume.mask[max(0, k - 1) : k + 2, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
        if lesion.value not in around or (lesion.radius_mm >= 2.5 and volume.mask[k, i, j] != lesion.value):
            problems.append(
                f"mask values {np.unique(around)} around it, {volume.mask[k, i, j]} at it, not {lesion.value}"
            )
    if truth.modality == "CTA" and lesion.radius_mm >= 2:
        value = volume.physical(zyx)
        if not 120 <= value <= 700:
            problems.append(f"{value:.0f} HU in the middle of the lumen")
    return problems


def _compare_side(truth: SeriesTruth, lesion: LesionTruth, volume: Cached, lps: Any, zyx: Any) -> list[str]:
    left = np.array(truth.left_lps)
    side = float((lps - truth.origin_lps) @ left)
    problems = []
    if abs(side - lesion.side_mm) > truth.gap_mm:
        problems.append(f"{side:.1f} mm left of the mid-plane, {lesion.side_mm:.1f} by the truth")
    mirror = (np.linalg.inv(volume.affine) @ [*(lps - 2 * side * left), 1])[:3]
    for name, sign in (("Left", 1), ("Right", -1)):
        # x runs to Left: a left lesion has the larger x of the pair of it and its mirror image.
        if lesion.site.startswith(name) and lesion.mark != "same_point" and (zyx - mirror)[2] * sign <= 0:
            problems.append(f"x is {zyx[2]:.1f}, and {mirror[2]:.1f} on the other side")
    return problems
