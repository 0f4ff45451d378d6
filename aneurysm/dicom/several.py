"""Frames at one position: duplicates to drop, or several volumes in one series to tell apart. Never mixed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import numpy as np

from aneurysm.cache.spec import SlicePolicy
from aneurysm.dicom.geometry import slice_geometry
from aneurysm.dicom.series import CONTRAST, TELLING, Decision, Frame, FrameKey
from aneurysm.errors import Reason, SeriesRejectedError

_COVERAGE = 0.9
"""A part of the frames is a volume of its own if it has a frame at this share of the positions."""
_FEW = 0.1
"""Up to this share of the positions may hold a second, different frame without speaking of a second volume."""
_DERIVED_KINDS = frozenset(
    {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "FIELD_MAP", "B0", "B0 MAP", "VELOCITY"}
)

Result = tuple[list[Frame], list[Decision], dict[FrameKey, str]]


def one_frame_per_position(
    frames: Sequence[Frame], policy: SlicePolicy, same_pixels: Callable[[Frame, Frame], bool]
) -> Result:
    """
    Return at most one frame for each position, the decisions, and why each of the others was dropped.

    Raises
    ------
    SeriesRejectedError
        The frames are of several volumes, and they can't be told apart for certain or ``policy`` doesn't want it.
    """
    groups = _positions(frames)
    repeated = [g for g in groups if len(g) > 1]
    if not repeated and not _interleaved(frames):
        alternating = _alternating(frames)
        if alternating is None:
            return list(frames), [], {}
        return _first_volume(frames, alternating, "by blocks of InstanceNumber that lie between each other", policy)

    split = _split_by_attributes(frames)
    if split is not None:
        names, parts = split
        return _first_volume(frames, parts, f"by {', '.join(names)}", policy)
    if not repeated:
        raise SeriesRejectedError(
            Reason.SEVERAL_VOLUMES,
            "slices of different contrast lie between each other, and don't make up volumes",
        )

    # Nothing tells them apart: the same slice stored twice, or time points whose tags were stripped.
    unique, broken = [], []
    for group in groups:
        distinct = _distinct(group, same_pixels)
        # A frame that can't be read is not even the same as itself: its twin stands for it.
        if len(distinct) > 1 and 0 < len(readable := [f for f in distinct if same_pixels(f, f)]) < len(distinct):
            broken += _missing(distinct, [readable])
            distinct = _distinct(readable, same_pixels)
        unique.append(distinct)
    identical = _missing(frames, [*unique, broken])
    differing = [g for g in unique if len(g) > 1]
    decisions = []
    dropped = dict.fromkeys((f.key for f in identical), "duplicate_slices")
    dropped |= dict.fromkeys((f.key for f in broken), "unreadable_slice")
    if broken:
        detail = f"{len(broken)} frames can't be decoded, and others at their positions can"
        decisions.append(Decision("unreadable_slice", detail))
    if identical:
        decisions.append(Decision("duplicate_slices", f"{len(identical)} frames repeat another's position and pixels"))
    if not differing:
        return [g[0] for g in unique], decisions, dropped
    if len(differing) <= _FEW * len(unique):
        # Which of them belongs here can't be told, and a wrong one would stand in the volume: none is kept.
        out = [f for g in differing for f in g]
        detail = f"{len(out)} frames lie at {len(differing)} positions with different pixels, and none of them is used"
        decisions.append(Decision("duplicate_positions", detail))
        dropped.update((f.key, "duplicate_positions") for f in out)
        return [g[0] for g in unique if len(g) == 1], decisions, dropped
    blocks = _split_by_instance_number(unique)
    if blocks is None:
        raise SeriesRejectedError(
            Reason.SEVERAL_VOLUMES,
            f"{len(frames)} frames at {len(unique)} positions, up to {max(map(len, unique))} at one, and no attribute "
            "tells the volumes apart",
        )
    kept, notes, more = _first_volume([f for g in unique for f in g], blocks, "by blocks of InstanceNumber", policy)
    return kept, decisions + notes, dropped | more


def _distinct(group: Sequence[Frame], same_pixels: Callable[[Frame, Frame], bool]) -> list[Frame]:
    return [group[0], *(f for f in group[1:] if not same_pixels(group[0], f))]


def _positions(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Group the frames by position along the normal."""
    geometry, ordered = slice_geometry(frames)
    gaps = geometry.gaps_mm
    real = gaps[gaps > 1e-3]
    # A fifth of the usual gap: slices rounded to 0.1 mm, or a second volume a hair beside the first.
    near = min(0.2 * float(np.median(real)), 0.5) if len(real) else 1e-3
    groups = [[ordered[0]]]
    start = 0.0
    for frame, place in zip(ordered[1:], geometry.positions_mm[1:], strict=True):
        if place - start <= near:
            groups[-1].append(frame)
        else:
            groups.append([frame])
            start = place
    for group in groups:
        group.sort(key=lambda f: (f.instance_number, str(f.path), f.index))
    return groups


def _interleaved(frames: Sequence[Frame]) -> bool:
    """Say whether frames of different contrast lie between each other although no position repeats."""
    geometry, ordered = slice_geometry(frames)
    places = dict(zip((id(f) for f in ordered), geometry.positions_mm, strict=True))
    for name in CONTRAST[1:]:
        parts: dict[str | None, list[float]] = defaultdict(list)
        for frame in ordered:
            parts[dict(frame.tells_apart).get(name)].append(places[id(frame)])
        if len(parts) < 2 or min(len(p) for p in parts.values()) < 0.25 * len(frames):
            continue
        spans = sorted((min(p), max(p)) for p in parts.values())
        if any(b[0] < a[1] for a, b in pairwise(spans)):
            return True
    return False


def _alternating(frames: Sequence[Frame]) -> list[list[Frame]] | None:
    """
    Return two volumes without a tag that tells them apart whose slices lie between each other, by turns.

    They were taken one after the other, each in the order of its places, and their distances alternate. Even distances
    are those of one stack whose slices were taken by turns.
    """
    geometry, ordered = slice_geometry(frames)
    parts = [ordered[::2], ordered[1::2]]
    gaps = [float(np.median(geometry.gaps_mm[i::2])) for i in (0, 1)] if len(frames) > 7 else [0.0, 0.0]
    numbers = [np.array([f.instance_number for f in part]) for part in parts]
    steps = [np.diff(n) for n in numbers]
    in_turn = all((s > 0).all() or (s < 0).all() for s in steps)
    apart = numbers[0].max() < numbers[1].min() or numbers[1].max() < numbers[0].min()
    return parts if in_turn and apart and max(gaps) > 1.2 * min(gaps) else None


def _split_by_attributes(frames: Sequence[Frame]) -> tuple[tuple[str, ...], list[list[Frame]]] | None:
    """Return the fewest attributes whose values part the frames into volumes, and the parts."""
    n_positions = len(_positions(frames))
    values = [dict(f.tells_apart) for f in frames]
    varying = [k for k in dict.fromkeys(k for v in values for k in v) if len({v.get(k) for v in values}) > 1]
    for n in range(1, min(len(varying), 3) + 1):
        for names in combinations(varying, n):
            parts: dict[tuple[str | None, ...], list[Frame]] = defaultdict(list)
            for frame, value in zip(frames, values, strict=True):
                parts[tuple(value.get(k) for k in names)].append(frame)
            found = list(parts.values())
            whole = [p for p in found if len(p) >= _COVERAGE * n_positions]
            if whole and len(found) > 1 and all(len(_positions(p)) == len(p) for p in found):
                return names, found
            # No position repeats, but contrasts lie between each other: each part is a coarser volume.
            if n_positions == len(frames) and len(found) > 1 and names[0] in CONTRAST:
                sizes = [len(p) for p in found]
                if min(sizes) >= 0.9 * max(sizes):
                    return names, found
    return None


def _split_by_instance_number(groups: Sequence[Sequence[Frame]]) -> list[list[Frame]] | None:
    """Part frames by rank at their position, if the ranks are blocks of InstanceNumber one after the other."""
    n = len(groups[0])
    if any(len(g) != n for g in groups):
        return None
    ranks = [[g[i] for g in groups] for i in range(n)]
    numbers = [[f.instance_number for f in r] for r in ranks]
    in_blocks = all(max(a) < min(b) for a, b in pairwise(numbers))
    return ranks if in_blocks else None


def _first_volume(frames: Sequence[Frame], parts: list[list[Frame]], how: str, policy: SlicePolicy) -> Result:
    largest = max(len(p) for p in parts)
    whole = [p for p in parts if len(p) >= _COVERAGE * largest]
    detail = f"{len(parts)} volumes told apart {how}"
    if policy.several_volumes == "reject":
        raise SeriesRejectedError(Reason.SEVERAL_VOLUMES, f"{detail}; the spec says several_volumes = 'reject'")
    kept = min(whole, key=_preference)
    telling = ", ".join(f"{k} {v}" for k, v in kept[0].tells_apart if _varies(frames, k))
    decision = Decision("several_volumes", f"{detail}; the first is kept" + (f": {telling}" if telling else ""))
    return kept, [decision], {f.key: "several_volumes" for f in _missing(frames, [kept])}


def _preference(part: Sequence[Frame]) -> tuple[bool, bool, list[float], float]:
    """Sort originals before derived, magnitude before phase, then the first echo, time point, acquisition."""
    values = dict(part[0].tells_apart)
    image_type = values.get("ImageType", "").upper().split("\\")
    ordered = [_number(values.get(k, "0")) for k in TELLING[1:]]
    return (
        bool(_DERIVED_KINDS & set(image_type)),
        "DERIVED" in image_type,
        ordered,
        min(f.instance_number for f in part),
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _varies(frames: Sequence[Frame], name: str) -> bool:
    return len({dict(f.tells_apart).get(name) for f in frames}) > 1


def _missing(frames: Sequence[Frame], groups: Sequence[Sequence[Frame]]) -> list[Frame]:
    kept = {f.key for g in groups for f in g}
    return [f for f in frames if f.key not in kept]
