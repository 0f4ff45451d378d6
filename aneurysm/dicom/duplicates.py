"""Frames at one position: duplicates to drop, or several volumes in one series to tell apart. Never mixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np

from aneurysm.dicom.acquisitions import (
    Groups,
    Places,
    Tags,
    blocks,
    common_tags,
    first_of_overlap,
    interleaved_passes,
    interleaved_tags,
    overlapping,
    parts_by_tags,
    places,
    positions,
)
from aneurysm.dicom.content import FrameContent, unlikeness
from aneurysm.dicom.frame import DISTINGUISHING_TAGS, Decision, Frame, FrameKey, TagValue
from aneurysm.errors import Reason, SeriesRejectedError
from aneurysm.spec import SlicePolicy

_COVERAGE = 0.9
"""A part of the frames is a volume of its own if it has a frame at this share of the positions."""
_FEW = 0.1
"""Up to this share of the positions may hold a second, different frame without speaking of a second volume."""
_DERIVED_KINDS = frozenset(
    {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "FIELD_MAP", "B0", "B0 MAP", "VELOCITY"}
)

Result = tuple[list[Frame], list[Decision], dict[FrameKey, str]]


def one_frame_per_position(frames: Sequence[Frame], policy: SlicePolicy, content: FrameContent) -> Result:
    """
    Return at most one frame for each position, the decisions, and why each of the others was dropped.

    Raises
    ------
    SeriesRejectedError
        The frames are of several volumes, and they can't be distinguished for certain or ``policy`` doesn't want it.
    """
    tags, where = common_tags(frames), places(frames)
    volumes = _volumes(frames, tags, where, content)
    if volumes is not None:
        how, parts = volumes
        return _first_volume(frames, parts, how, tags, policy)
    overlap = overlapping(frames, tags, where)
    if overlap is None:
        return _without_duplicates(frames, tags, policy, content)
    how, parts = overlap
    frames, out = first_of_overlap(parts)
    detail = f"{len(parts)} acquisitions told apart {how} overlap: {len(out)} frames lie where a larger one has its own"
    decision = Decision("overlapping_acquisitions", detail)
    kept, decisions, dropped = _without_duplicates(frames, tags, policy, content)
    return kept, [decision, *decisions], dropped | {f.key: decision.code for f in out}


def _volumes(frames: Sequence[Frame], tags: Tags, where: Places, content: FrameContent) -> tuple[str, Groups] | None:
    """Return the volumes that the frames make up, and what tells them apart; None where they are one or none can."""
    groups = positions(frames)
    repeated = len(groups) < len(frames)
    interleaved = [] if repeated else interleaved_tags(frames, tags, where)
    if not repeated and not interleaved:
        return interleaved_passes(frames, where, content)
    split = _split_by_tags(frames, tags, len(groups), interleaved)
    if split is None and interleaved:
        raise SeriesRejectedError(
            Reason.SEVERAL_VOLUMES,
            f"slices that differ in {', '.join(interleaved)} lie between each other, and don't make up volumes",
        )
    return split


def _without_duplicates(frames: Sequence[Frame], tags: Tags, policy: SlicePolicy, content: FrameContent) -> Result:
    """Keep one of the frames that are at one place although nothing tells them apart."""
    groups = positions(frames)
    if len(groups) == len(frames):
        return list(frames), [], {}
    unique, broken = [], []
    for group in groups:
        distinct = _distinct(group, content)
        # A frame that can't be read is not even the same as itself: its twin stands for it.
        if len(distinct) > 1 and 0 < len(readable := [f for f in distinct if content.same_pixels(f, f)]) < len(
            distinct
        ):
            broken += _missing(distinct, [readable])
            distinct = _distinct(readable, content)
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
        kept = _most_continuous(unique, content)
        out = _missing([f for g in unique for f in g], [kept])
        detail = (
            f"{len(differing)} positions hold {len(out) + len(differing)} frames of different pixels; at each the one "
            "that continues its neighbours is used"
        )
        decisions.append(Decision("duplicate_positions", detail))
        return kept, decisions, dropped | dict.fromkeys((f.key for f in out), "duplicate_positions")
    remaining = [f for g in unique for f in g]
    volumes = blocks(remaining, unique)
    if volumes is None or max(map(len, volumes[1])) < _COVERAGE * len(unique):
        raise SeriesRejectedError(
            Reason.SEVERAL_VOLUMES,
            f"{len(frames)} frames at {len(unique)} positions, up to {max(map(len, unique))} at one, and no attribute "
            "tells the volumes apart",
        )
    kept, notes, more = _first_volume(remaining, volumes[1], volumes[0], tags, policy)
    return kept, decisions + notes, dropped | more


def _distinct(group: Sequence[Frame], content: FrameContent) -> list[Frame]:
    return [group[0], *(f for f in group[1:] if not content.same_pixels(group[0], f))]


def _most_continuous(groups: Groups, content: FrameContent) -> list[Frame]:
    """
    Return one frame of each group, so that neighbours are as alike as can be.

    By dynamic programming over all positions: where two acquisitions share several places next to each other, going
    from one to the other costs, so that one of them is taken throughout.
    """
    costs = [0.0] * len(groups[0])
    origins: list[list[int]] = []
    for before, here in pairwise(groups):
        choice = len(before) * len(here) > 1
        steps = [
            [
                c + (unlikeness(content.coarse(a), content.coarse(b)) if choice else 0.0)
                for a, c in zip(before, costs, strict=True)
            ]
            for b in here
        ]
        origins.append([int(np.argmin(step)) for step in steps])
        costs = [min(step) for step in steps]
    index = int(np.argmin(costs))
    chosen = [groups[-1][index]]
    for group, origin in zip(groups[-2::-1], origins[::-1], strict=True):
        index = origin[index]
        chosen.append(group[index])
    return chosen[::-1]


def _split_by_tags(
    frames: Sequence[Frame], tags: Tags, n_positions: int, interleaved: Sequence[str]
) -> tuple[str, Groups] | None:
    """Return the fewest tags whose values part the frames into volumes, and the parts."""
    values = list(tags.values())
    order = dict.fromkeys((*DISTINGUISHING_TAGS, *sorted({k for v in values for k in v})))
    varying = [k for k in order if len({v.get(k) for v in values}) > 1]
    for n in range(1, min(len(varying), 3) + 1):
        for names in combinations(varying, n):
            parts = parts_by_tags(frames, tags, names)
            if len(parts) < 2:
                continue
            whole = [p for p in parts if len(p) >= _COVERAGE * max(map(len, parts))]
            if interleaved:
                # No position repeats, but volumes lie between each other: each part is a coarser one.
                if set(names) & set(interleaved) and sum(map(len, whole)) >= _COVERAGE * len(frames):
                    return f"by {', '.join(names)}", parts
            elif max(map(len, parts)) >= _COVERAGE * n_positions and all(len(positions(p)) == len(p) for p in parts):
                return f"by {', '.join(names)}", parts
    return None


def _first_volume(frames: Sequence[Frame], parts: Groups, how: str, tags: Tags, policy: SlicePolicy) -> Result:
    largest = max(len(p) for p in parts)
    whole = [p for p in parts if len(p) >= _COVERAGE * largest]
    detail = f"{len(parts)} volumes told apart {how}"
    if policy.several_volumes == "reject":
        raise SeriesRejectedError(Reason.SEVERAL_VOLUMES, f"{detail}; the spec says several_volumes = 'reject'")
    kept = min(whole, key=lambda part: _preference(part, tags))
    varying = [k for k in DISTINGUISHING_TAGS if len({tags[f.key].get(k) for f in frames}) > 1]
    common = [(k, {tags[f.key].get(k) for f in kept}) for k in varying]
    named = ", ".join(f"{k} {_shown(*values)}" for k, values in common if len(values) == 1 and None not in values)
    decision = Decision("several_volumes", f"{detail}; the first is kept" + (f": {named}" if named else ""))
    return kept, [decision], {f.key: "several_volumes" for f in _missing(frames, [kept])}


def _preference(part: Sequence[Frame], tags: Tags) -> tuple[bool, bool, list[float], tuple[float, str]]:
    """Sort originals before derived, magnitude before phase, then the first echo, time point, acquisition."""
    kinds = Counter(str(tags[f.key].get("ImageType", "")).upper() for f in part)
    image_type = min(kinds, key=lambda kind: (-kinds[kind], kind)).split("\\")
    order = [min(_number(tags[f.key].get(k)) for f in part) for k in DISTINGUISHING_TAGS[1:]]
    order += [min(f.acquired_s or 0.0 for f in part), min(f.created_s or 0.0 for f in part)]
    return (
        bool(_DERIVED_KINDS & set(image_type)),
        "DERIVED" in image_type,
        order,
        min((f.instance_number, f.sop_uid) for f in part),
    )


def _number(value: TagValue | None) -> float:
    return value if isinstance(value, float) else 0.0


def _shown(value: TagValue | None) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _missing(frames: Sequence[Frame], groups: Sequence[Sequence[Frame]]) -> list[Frame]:
    kept = {f.key for g in groups for f in g}
    return [f for f in frames if f.key not in kept]
