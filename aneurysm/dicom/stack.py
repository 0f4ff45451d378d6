"""Series -> Stack: which of its frames make up one volume, in which order, and why the others don't."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aneurysm.dicom.content import FrameContent
from aneurysm.dicom.duplicates import one_frame_per_position
from aneurysm.dicom.frame import Decision, Frame, FrameKey, listed
from aneurysm.dicom.geometry import SliceGeometry, common_orientation, common_spacing, plane_axes, slice_geometry
from aneurysm.dicom.image_type import without_projections
from aneurysm.dicom.outsiders import slices_of_other_content
from aneurysm.dicom.parts import Parts, described_parts, find_parts, gap_limit
from aneurysm.dicom.tolerances import ORIENTATION_SPREAD, same_orientation, same_spacing, shown
from aneurysm.errors import Reason, SeriesRejectedError
from aneurysm.spec import SlicePolicy

MAX_IN_PLANE_MM = 1000.0
MAX_ALONG_MM = 3000.0
"""A field of view beyond these is damage: a CT bore is 0.9 m wide, and no couch moves 3 m."""


@dataclass(frozen=True)
class Stack:
    """
    One volume's frames, in order along the normal, with their geometry and what was decided.

    Attributes
    ----------
    frames, geometry
        Of the largest part: in most series the only one.
    decisions
        What was decided about all parts.
    dropped
        Why each frame that is not in the volume isn't. Localizers refer to frames.
    others
        The other parts, the largest first: blocks of slices of another tilt, matrix or spacing.
    """

    frames: list[Frame]
    geometry: SliceGeometry
    decisions: list[Decision]
    dropped: dict[FrameKey, str]
    others: tuple[Stack, ...] = ()

    @property
    def parts(self) -> tuple[Stack, ...]:
        """All parts, the largest first."""
        return (self, *self.others)

    @property
    def all_frames(self) -> list[Frame]:
        """The frames of all parts, part by part."""
        return [frame for part in self.parts for frame in part.frames]


def stack_frames(frames: Sequence[Frame], policy: SlicePolicy, content: FrameContent) -> Stack:
    """
    Select and order the frames of one volume; the order in which they come makes no difference.

    ``content`` is asked only about frames that geometry and tags leave a doubt about, and about the ends of the stack.

    Raises
    ------
    SeriesRejectedError
        No volume can be made within the limits of ``policy``; the reason says what stands against it.
    """
    placed = _with_geometry(frames)
    slices, projections, notes = without_projections(placed, policy.min_slices)
    found = find_parts(_kinds(slices), policy)
    _check_majority(found, slices)
    out = _Dropped(len(frames))
    out.drop(
        sorted(set(frames) - set(placed), key=_by_name),
        "without_geometry",
        "no usable position or orientation",
    )
    out.decisions.extend(notes)
    out.reasons.update((f.key, "projections_dropped") for f in projections)
    minority = sorted((f for g in found.minority for f in g), key=_by_name)
    out.drop(minority, "minority_dropped", "another matrix, spacing, orientation, colour or modality than the majority")
    out.drop([f for g in found.strays for f in g], "dropped_slices", "cut off from the stack by a gap beyond the limit")
    main, *others = (_one_part(part, placed, policy, content, out) for part in found.parts)
    if others:
        described = described_parts([part[1] for part in (main, *others)])
        out.decisions.append(Decision("several_parts", "; ".join(described)))
    geometry, kept = main
    return Stack(
        kept, geometry, out.decisions, out.reasons, tuple(Stack(frames, own, [], {}) for own, frames in others)
    )


class _Dropped:
    """Collects which frames are left out, and why."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.decisions: list[Decision] = []
        self.reasons: dict[FrameKey, str] = {}

    def drop(self, out: Sequence[Frame], code: str, why: str) -> None:
        if out:
            self.decisions.append(
                Decision(code, f"{len(out)} of {self._total} frames: {why} ({listed([f.name for f in out], 4)})")
            )
            self.reasons.update((f.key, code) for f in out)


def _one_part(
    kept: list[Frame], placed: Sequence[Frame], policy: SlicePolicy, content: FrameContent, out: _Dropped
) -> tuple[SliceGeometry, list[Frame]]:
    """Return the slices of one part in order, and where they lie."""
    total = len(kept)
    fmt = kept[0].format
    if not fmt.is_monochrome:
        raise SeriesRejectedError(
            Reason.COLOUR, f"{len(kept)} frames are {fmt.photometric}, {fmt.samples} samples a pixel"
        )
    _check_spacing(kept)
    _check_drift(kept)
    if len(kept) < policy.min_slices:
        raise SeriesRejectedError(Reason.TOO_FEW_SLICES, f"{len(kept)} slices, at least {policy.min_slices} are needed")

    _, kept = slice_geometry(kept)
    kept, notes, doubles = one_frame_per_position(kept, policy, content)
    out.decisions.extend(notes)
    out.reasons.update(doubles)
    if len(kept) < policy.min_slices:
        raise SeriesRejectedError(
            Reason.ONE_POSITION,
            f"{total} frames at {len(kept)} position(s): no extent across the slices",
        )
    others = slices_of_other_content(kept, content)
    out.drop(others, "foreign_slices", "off the even stack or beyond its end, and unlike the slices beside them")
    foreign = {f.key for f in others}
    geometry, kept, strays = _longest_run([f for f in kept if f.key not in foreign], placed, policy)
    out.drop(strays, "dropped_slices", "cut off from the stack by a gap beyond the limit")
    out.decisions.extend(_check_geometry(geometry, kept, policy))
    return geometry, kept


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


def _check_majority(found: Parts, frames: Sequence[Frame]) -> None:
    """Raise where the parts of one volume, if it is one, are no more than half of the frames."""
    if sum(map(len, found.parts)) * 2 <= len(frames):
        groups = [*found.parts, *found.strays, *found.minority]
        kinds = "; ".join(_described(groups[:4]))
        raise SeriesRejectedError(
            Reason.NO_MAJORITY, f"{len(groups)} kinds of frames and none is the majority: {kinds}"
        )


def _kinds(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Group the frames by matrix, kind of pixel and modality, and by orientation and spacing within tolerance."""
    modalities = Counter(f.modality for f in frames if f.modality)
    commonest = min(modalities, key=lambda name: (-modalities[name], name), default="")
    spacings = np.array([f.spacing_mm for f in frames], float)
    rows, columns = (same_spacing(axis.tolist()) for axis in spacings.T)
    turned = same_orientation(np.array([f.orientation for f in frames], float))
    groups: dict[tuple[object, ...], list[Frame]] = defaultdict(list)
    for frame, *measured in zip(frames, rows, columns, turned, strict=True):
        fmt = frame.format
        exact = (fmt.rows, fmt.columns, fmt.samples, fmt.is_monochrome)
        groups[(*exact, frame.modality or commonest, *measured)].append(frame)
    return sorted(groups.values(), key=lambda g: (-len(g), min(f.sop_uid for f in g)))


def _described(groups: Sequence[Sequence[Frame]]) -> list[str]:
    """Return what each kind of frames is, with as many digits as it takes to tell them apart."""
    columns = [shown([common_spacing(g)[axis] for g in groups], 2) for axis in (0, 1)]
    axes = [plane_axes(common_orientation(g)) for g in groups]
    normals = [shown([0.0 if a is None else float(a[2, axis]) for a in axes], 2) for axis in range(3)]
    return [
        f"{len(g)} of {g[0].format.rows} x {g[0].format.columns}, {rows} x {cols} mm, normal {' '.join(normal)}"
        f"{'' if g[0].format.samples == 1 else ', colour'}, {g[0].modality or 'no modality'}"
        for g, rows, cols, normal in zip(groups, *columns, zip(*normals, strict=True), strict=True)
    ]


def _check_drift(frames: Sequence[Frame]) -> None:
    """Raise for slices that turn further and further, each within tolerance of the next."""
    turned = np.abs(np.array([f.orientation for f in frames], float) - common_orientation(frames)).max()
    if turned > ORIENTATION_SPREAD:
        raise SeriesRejectedError(
            Reason.NOT_ALIGNED,
            f"the orientation drifts by up to {np.degrees(turned):.2f} degrees from the middle of the stack, at most "
            f"{np.degrees(ORIENTATION_SPREAD):.2f} are allowed",
        )


def _check_spacing(frames: Sequence[Frame]) -> None:
    spacing, fmt = common_spacing(frames), frames[0].format
    extents = (spacing[0] * fmt.rows, spacing[1] * fmt.columns)
    if min(spacing) < 0.01 or max(extents) > MAX_IN_PLANE_MM:
        raise SeriesRejectedError(
            Reason.IMPLAUSIBLE_GEOMETRY,
            f"pixels of {spacing[0]:g} x {spacing[1]:g} mm make a field of view of {extents[0]:g} x {extents[1]:g} mm",
        )


def _longest_run(
    frames: list[Frame], placed: Sequence[Frame], policy: SlicePolicy
) -> tuple[SliceGeometry, list[Frame], list[Frame]]:
    """
    Cut the stack at gaps beyond the limit; return its largest part with its geometry and, if few, the other slices.

    ``placed`` are all frames that have a place: those that were left out may lie in a gap.
    """
    geometry, frames = slice_geometry(frames)
    limit = gap_limit([geometry.slice_spacing_mm], policy)
    cuts = np.flatnonzero(geometry.gaps_mm > limit + 1e-6) + 1
    parts = np.split(np.arange(len(frames)), cuts)
    best = max(parts, key=len)
    others = len(frames) - len(best)
    if others > policy.max_stray_fraction * len(frames) or len(best) < policy.min_slices:
        worst = int(geometry.gaps_mm.argmax())
        gap, median, most = shown([geometry.gaps_mm[worst], geometry.slice_spacing_mm, limit], 2)
        normal = geometry.axes[2]
        low, high = (normal @ np.array(frames[i].position) for i in (worst, worst + 1))
        within = sum(low < normal @ np.array(f.position) < high for f in placed)
        raise SeriesRejectedError(
            Reason.GAP_TOO_LARGE,
            f"a gap of {gap} mm between {frames[worst].name} and {frames[worst + 1].name}; "
            f"the median is {median} mm and the limit {most} mm"
            + (f"; {within} frames that were left out lie in it" if within else ""),
        )
    if not others:
        return geometry, frames, []
    keep = set(best.tolist())
    return *slice_geometry([frames[i] for i in best]), [f for i, f in enumerate(frames) if i not in keep]


def _check_geometry(geometry: SliceGeometry, frames: list[Frame], policy: SlicePolicy) -> list[Decision]:
    decisions = []
    extent = geometry.positions_mm[-1]
    if extent > MAX_ALONG_MM:
        raise SeriesRejectedError(Reason.IMPLAUSIBLE_GEOMETRY, f"the stack is {extent:g} mm long")
    if geometry.tilt_deg > policy.max_tilt_deg:
        tilt, limit = shown([geometry.tilt_deg, policy.max_tilt_deg], 1)
        raise SeriesRejectedError(
            Reason.TILT_TOO_LARGE, f"slices step {tilt} degrees off their normal, the limit is {limit}"
        )
    if geometry.misalignment_mm > policy.max_misalignment_mm:
        beside, limit = shown([geometry.misalignment_mm, policy.max_misalignment_mm], 1)
        raise SeriesRejectedError(
            Reason.NOT_ALIGNED,
            f"slices lie up to {beside} mm beside the line through the stack, at most {limit} mm is allowed",
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


def _by_name(frame: Frame) -> tuple[str, str, int]:
    return (frame.sop_uid, str(frame.path), frame.index)
