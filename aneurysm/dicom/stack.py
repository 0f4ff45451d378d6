"""Series -> Stack: which of its frames make up one volume, in which order, and why the others don't."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aneurysm.cache.spec import SlicePolicy
from aneurysm.dicom.geometry import ORIENTATION_TOLERANCE, SliceGeometry, plane_axes, slice_geometry
from aneurysm.dicom.series import Decision, Frame, FrameKey
from aneurysm.dicom.several import one_frame_per_position
from aneurysm.errors import Reason, SeriesRejectedError

MAX_IN_PLANE_MM = 1000.0
MAX_ALONG_MM = 3000.0
"""A field of view beyond these is damage: a CT bore is 0.9 m wide, and no couch moves 3 m."""


@dataclass(frozen=True)
class Stack:
    """One volume's frames, in order along the normal, with their geometry and what was decided."""

    frames: list[Frame]
    geometry: SliceGeometry
    decisions: list[Decision]
    dropped: dict[FrameKey, str]
    """Why each frame that is not in the volume isn't. Localizers refer to frames."""


SamePixels = Callable[[Frame, Frame], bool]


def stack_frames(frames: Sequence[Frame], policy: SlicePolicy, same_pixels: SamePixels) -> Stack:
    """
    Select and order the frames of one volume.

    ``same_pixels`` is asked only about frames at one position that no attribute tells apart.

    Raises
    ------
    SeriesRejectedError
        No volume can be made within the limits of ``policy``; the reason says what stands against it.
    """
    decisions: list[Decision] = []
    dropped: dict[FrameKey, str] = {}

    def drop(out: Sequence[Frame], code: str, why: str) -> None:
        if out:
            decisions.append(Decision(code, f"{len(out)} of {len(frames)} frames: {why} ({_names(out)})"))
            dropped.update((f.key, code) for f in out)

    placed = _with_geometry(frames)
    kept, minority = _majority(placed)
    drop(
        sorted(set(frames) - set(placed), key=_by_name),
        "without_geometry",
        "no usable position or orientation",
    )
    drop(minority, "minority_dropped", "another matrix, spacing, orientation, colour or modality than the majority")
    if kept[0].format.samples != 1 or not kept[0].format.photometric.startswith("MONOCHROME"):
        fmt = kept[0].format
        raise SeriesRejectedError(
            Reason.COLOUR, f"{len(kept)} frames are {fmt.photometric}, {fmt.samples} samples a pixel"
        )
    _check_spacing(kept[0])
    if len(kept) < policy.min_slices:
        raise SeriesRejectedError(Reason.TOO_FEW_SLICES, f"{len(kept)} slices, at least {policy.min_slices} are needed")

    _, kept = slice_geometry(kept)
    kept, notes, doubles = one_frame_per_position(kept, policy, same_pixels)
    decisions.extend(notes)
    dropped.update(doubles)
    if len(kept) < policy.min_slices:
        raise SeriesRejectedError(
            Reason.ONE_POSITION,
            f"{len(frames)} frames at {len(kept)} position(s): no extent across the slices",
        )
    kept, strays = _longest_run(kept, policy)
    drop(strays, "dropped_slices", "cut off from the stack by a gap beyond the limit")
    geometry, kept = slice_geometry(kept)
    decisions.extend(_check_geometry(geometry, kept, policy))
    return Stack(kept, geometry, decisions, dropped)


def _with_geometry(frames: Sequence[Frame]) -> list[Frame]:
    placed = [
        f
        for f in frames
        if f.position is not None
        and f.spacing_mm is not None
        and f.orientation is not None
        and plane_axes(f.orientation) is not None
    ]
    if not placed:
        absent = Counter[str]()
        for frame in frames:
            absent["ImagePositionPatient"] += frame.position is None
            absent["ImageOrientationPatient"] += frame.orientation is None or plane_axes(frame.orientation) is None
            absent["PixelSpacing"] += frame.spacing_mm is None
        what = ", ".join(f"{name} in {n}" for name, n in absent.items() if n)
        raise SeriesRejectedError(Reason.NO_GEOMETRY, f"of {len(frames)} frames, absent or malformed: {what}")
    return placed


def _majority(frames: Sequence[Frame]) -> tuple[list[Frame], list[Frame]]:
    """Return the frames of the commonest matrix, spacing, orientation and kind of pixel, and the others."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _alike(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    groups.sort(key=len, reverse=True)
    if len(groups) > 1 and len(groups[0]) * 2 <= len(frames):
        kinds = "; ".join(
            f"{len(g)} of {g[0].format.rows} x {g[0].format.columns}, {_orientation(g[0])}" for g in groups[:4]
        )
        raise SeriesRejectedError(
            Reason.NO_MAJORITY, f"{len(groups)} kinds of frames and none is the majority: {kinds}"
        )
    return groups[0], sorted((f for g in groups[1:] for f in g), key=_by_name)


def _alike(a: Frame, b: Frame) -> bool:
    assert a.orientation is not None
    assert b.orientation is not None
    assert a.spacing_mm is not None
    assert b.spacing_mm is not None
    return (
        (a.format.rows, a.format.columns, a.format.samples) == (b.format.rows, b.format.columns, b.format.samples)
        and (a.modality == b.modality or not a.modality or not b.modality)
        and a.format.photometric.startswith("MONOCHROME") == b.format.photometric.startswith("MONOCHROME")
        and max(abs(p - q) for p, q in zip(a.orientation, b.orientation, strict=True)) < ORIENTATION_TOLERANCE
        and max(abs(p - q) / max(abs(p), 1e-6) for p, q in zip(a.spacing_mm, b.spacing_mm, strict=True)) < 2e-4
    )


def _check_spacing(frame: Frame) -> None:
    assert frame.spacing_mm is not None
    extents = (frame.spacing_mm[0] * frame.format.rows, frame.spacing_mm[1] * frame.format.columns)
    if min(frame.spacing_mm) < 0.01 or max(extents) > MAX_IN_PLANE_MM:
        raise SeriesRejectedError(
            Reason.IMPLAUSIBLE_GEOMETRY,
            f"pixels of {frame.spacing_mm[0]:g} x {frame.spacing_mm[1]:g} mm make a field of view of "
            f"{extents[0]:g} x {extents[1]:g} mm",
        )


def _longest_run(frames: list[Frame], policy: SlicePolicy) -> tuple[list[Frame], list[Frame]]:
    """Cut the stack at gaps beyond the limit; return its largest part and, if they are few, the other slices."""
    geometry, frames = slice_geometry(frames)
    limit = min(policy.max_gap_ratio * geometry.slice_spacing_mm, policy.max_gap_mm)
    cuts = np.flatnonzero(geometry.gaps_mm > limit + 1e-6) + 1
    parts = np.split(np.arange(len(frames)), cuts)
    best = max(parts, key=len)
    others = len(frames) - len(best)
    if others > policy.max_stray_fraction * len(frames) or len(best) < policy.min_slices:
        worst = int(geometry.gaps_mm.argmax())
        raise SeriesRejectedError(
            Reason.GAP_TOO_LARGE,
            f"a gap of {geometry.gaps_mm[worst]:.2f} mm between {frames[worst].name} and {frames[worst + 1].name}; "
            f"the median is {geometry.slice_spacing_mm:.2f} mm and the limit {limit:.2f} mm",
        )
    keep = set(best.tolist())
    return [frames[i] for i in best], [f for i, f in enumerate(frames) if i not in keep]


def _check_geometry(geometry: SliceGeometry, frames: list[Frame], policy: SlicePolicy) -> list[Decision]:
    decisions = []
    extent = geometry.positions_mm[-1]
    if extent > MAX_ALONG_MM:
        raise SeriesRejectedError(Reason.IMPLAUSIBLE_GEOMETRY, f"the stack is {extent:g} mm long")
    if geometry.tilt_deg > policy.max_tilt_deg:
        raise SeriesRejectedError(
            Reason.TILT_TOO_LARGE,
            f"slices step {geometry.tilt_deg:.1f} degrees off their normal, the limit is {policy.max_tilt_deg:g}",
        )
    if geometry.misalignment_mm > policy.max_misalignment_mm:
        raise SeriesRejectedError(
            Reason.NOT_ALIGNED,
            f"slices lie up to {geometry.misalignment_mm:.1f} mm beside the line through the stack, at most "
            f"{policy.max_misalignment_mm:g} mm is allowed",
        )
    if geometry.tilt_deg > 0.1:
        decisions.append(Decision("gantry_tilt", f"{geometry.tilt_deg:.2f} degrees, taken out slice by slice"))
    median = geometry.slice_spacing_mm
    uneven = geometry.gaps_mm[np.abs(geometry.gaps_mm - median) > 0.05 * median]
    if len(uneven):
        decisions.append(
            Decision(
                "uneven_slices",
                f"{len(uneven)} of {len(frames) - 1} gaps differ from {median:.3f} mm: {uneven.min():.3f} to "
                f"{uneven.max():.3f} mm",
            )
        )
    return decisions


def _orientation(frame: Frame) -> str:
    axes = plane_axes(frame.orientation or ())
    return "no plane" if axes is None else "normal " + " ".join(f"{v:.2f}" for v in axes[2])


def _by_name(frame: Frame) -> tuple[str, int]:
    return (str(frame.path), frame.index)


def _names(frames: Sequence[Frame], limit: int = 4) -> str:
    rest = len(frames) - limit
    return ", ".join(f.name for f in frames[:limit]) + (f" and {rest} more" if rest > 0 else "")
