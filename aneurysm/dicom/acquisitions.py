"""Frames -> the acquisitions that they come from: by their tags, their times, or the order of their numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Final

import numpy as np

from aneurysm.dicom.content import FrameContent, unlikeness
from aneurysm.dicom.frame import CONTRAST_TAGS, DISTINGUISHING_TAGS, Frame, FrameKey, TagValue
from aneurysm.dicom.geometry import slice_geometry
from aneurysm.dicom.tolerances import SAME_PLACE_FRACTION, SAME_PLACE_MM, same_tag

MEASURED_TAGS: Final = ("EchoTime", "DiffusionBValue", "KVP", "InversionTime", "TriggerTime")
"""Of the distinguishing tags those that are measured; the others are counts or words, which are the same or not."""
MAX_PASSES: Final = 4
"""More passes over the patient than this are none: the order says nothing."""
BY_TURNS: Final = 0.5
"""Acquisitions that share more than this part of the shorter one's extent cover the same anatomy."""
SMALLEST_SHARE: Final = 0.1
"""A part of fewer frames is no acquisition of its own: single slices that were taken again."""
_UNEVEN: Final = 0.2
"""Share of the mean gap by which the gaps of two interleaved stacks differ from it; rounding to 0.1 mm is less."""
_SAMPLES: Final = 12
_ALTERNATES: Final = 1.2
"""How much more unlike the slices of other acquisitions nearby are than those of the same one further away."""

Groups = list[list[Frame]]
Tags = Mapping[FrameKey, Mapping[str, TagValue]]
Places = Mapping[FrameKey, float]


def common_tags(frames: Sequence[Frame]) -> Tags:
    """Return the distinguishing tags of each frame, values within tolerance replaced by the commonest of them."""
    tags = {f.key: dict(f.distinguishing_tags) for f in frames}
    for name in MEASURED_TAGS:
        counts = Counter(value for v in tags.values() if isinstance(value := v.get(name), float))
        values = sorted(counts)
        groups: dict[int, list[float]] = defaultdict(list)
        for value, number in zip(values, same_tag(values), strict=True):
            groups[number].append(value)
        same: dict[TagValue, float] = {
            v: min(group, key=lambda v: (-counts[v], v)) for group in groups.values() for v in group
        }
        for own in tags.values():
            if name in own:
                own[name] = same.get(own[name], own[name])
    return tags


def places(frames: Sequence[Frame]) -> dict[FrameKey, float]:
    """Return where each frame lies along the normal, in mm."""
    geometry, ordered = slice_geometry(frames)
    return {f.key: float(z) for f, z in zip(ordered, geometry.positions_mm, strict=True)}


def positions(frames: Sequence[Frame]) -> Groups:
    """Group the frames by position along the normal."""
    geometry, ordered = slice_geometry(frames)
    gaps = geometry.gaps_mm
    real = gaps[gaps > SAME_PLACE_MM] if (gaps > SAME_PLACE_MM).any() else gaps[gaps > 1e-3]
    near = min(SAME_PLACE_FRACTION * float(np.median(real)), SAME_PLACE_MM) if len(real) else 1e-3
    groups = [[ordered[0]]]
    start = 0.0
    for frame, place in zip(ordered[1:], geometry.positions_mm[1:], strict=True):
        if place - start <= near:
            groups[-1].append(frame)
        else:
            groups.append([frame])
            start = place
    for group in groups:
        group.sort(key=lambda f: (f.instance_number, f.sop_uid, str(f.path), f.index))
    return groups


def parts_by_tags(frames: Sequence[Frame], tags: Tags, names: Sequence[str]) -> Groups:
    """Part the frames by the values of the tags ``names``."""
    parts: dict[tuple[TagValue | None, ...], list[Frame]] = defaultdict(list)
    for frame in frames:
        parts[tuple(tags[frame.key].get(name) for name in names)].append(frame)
    return list(parts.values())


def interleaved_tags(frames: Sequence[Frame], tags: Tags, where: Places) -> list[str]:
    """Return the tags whose values lie between each other although no position repeats: two volumes by turns."""
    names = (*CONTRAST_TAGS[1:], "AcquisitionNumber")
    return [name for name in names if _by_turns(parts_by_tags(frames, tags, [name]), where)]


def interleaved_passes(frames: Sequence[Frame], where: Places, content: FrameContent) -> tuple[str, Groups] | None:
    """
    Return volumes that lie between each other without a tag that says so, and what tells them apart.

    One stack may be taken in several passes, too, each of every other slice: in MR that is usual. So times prove
    something in CT alone, and numbers nothing: the gaps must alternate, or the pixels. Neighbours that are less alike
    than slices two gaps apart are not neighbours.
    """
    certain = set()
    if frames[0].modality == "CT":
        # The time at which an image was stored says something only where none says when it was acquired.
        certain = {_BY_ACQUIRED} if any(f.acquired_s is not None for f in frames) else {_BY_CREATED}
    heights = np.sort(np.array(list(where.values())))
    gaps = np.diff(heights)
    uneven = len(gaps) > 2 and float(np.median(np.abs(gaps - gaps.mean()))) > _UNEVEN * float(gaps.mean())
    for how, parts in _orders(frames, where):
        if _by_turns(parts, where) and (uneven or how in certain or _alternates(parts, where, content)):
            return how, parts
    ordered = sorted(frames, key=lambda f: where[f.key])
    parts = [ordered[::2], ordered[1::2]]
    if uneven and _by_turns(parts, where) and _alternates(parts, where, content):
        return "by their distances", parts
    return None


def overlapping(frames: Sequence[Frame], tags: Tags, where: Places) -> tuple[str, Groups] | None:
    """Return acquisitions of which some overlap by less than half, and what tells them apart."""
    named = [(f"by {name}", parts_by_tags(frames, tags, [name])) for name in reversed(DISTINGUISHING_TAGS[1:])]
    for how, parts in (*named, *_orders(frames, where)):
        if not 2 <= len(parts) <= MAX_PASSES or min(map(len, parts)) < max(2, SMALLEST_SHARE * len(frames)):
            continue
        if any(len(positions(p)) < len(p) for p in parts):
            continue
        shares = [_shared(a, b, where) for a, b in combinations(parts, 2)]
        if any(s is not None for s in shares) and all(s is None or s <= BY_TURNS for s in shares):
            return how, parts
    return None


def first_of_overlap(parts: Groups) -> tuple[list[Frame], list[Frame]]:
    """Return the frames of ``parts`` of which only the largest has any over its whole extent, and the others."""
    where = places([f for p in parts for f in p])
    kept: list[Frame] = []
    dropped: list[Frame] = []
    spans: list[tuple[float, float]] = []
    for part in sorted(parts, key=lambda p: (-len(p), min(f.instance_number for f in p), min(f.sop_uid for f in p))):
        within = {f.key for f in part for low, high in spans if low <= where[f.key] <= high}
        kept += [f for f in part if f.key not in within]
        dropped += [f for f in part if f.key in within]
        low, high = _span(part, where)
        spans.append((low - SAME_PLACE_MM, high + SAME_PLACE_MM))
    return kept, dropped


def blocks(frames: Sequence[Frame], groups: Groups) -> tuple[str, Groups] | None:
    """
    Return volumes one after the other by time or InstanceNumber, and which of the two.

    Each ends where a position comes again. Seen from the end, they must be the same: else it isn't certain where.
    """
    position = {f.key: i for i, group in enumerate(groups) for f in group}
    for how, _, moments in _in_time(frames):
        forward = _cut(moments, position)
        backward = _cut(moments[::-1], position)
        if forward and backward and {_keys(p) for p in forward} == {_keys(p) for p in backward}:
            return how, forward
    return None


def _cut(moments: Groups, position: Mapping[FrameKey, int]) -> Groups | None:
    parts: Groups = []
    taken: set[int] = set()
    for moment in moments:
        here = {position[f.key] for f in moment}
        if len(here) < len(moment):
            return None
        if not parts or here & taken:
            parts.append([])
            taken = set()
        parts[-1] += moment
        taken |= here
    return parts


def _keys(frames: Sequence[Frame]) -> frozenset[FrameKey]:
    return frozenset(f.key for f in frames)


_BY_ACQUIRED: Final = "by AcquisitionTime"
_BY_CREATED: Final = "by ContentTime"
_WHEN: Final[dict[str, Callable[[Frame], float | None]]] = {
    _BY_ACQUIRED: lambda f: f.acquired_s,
    _BY_CREATED: lambda f: f.created_s,
    "by blocks of InstanceNumber": lambda f: f.instance_number,
}


def _orders(frames: Sequence[Frame], where: Places) -> Iterator[tuple[str, Groups]]:
    """Yield the passes over the patient that times and numbers tell apart, where there are several."""
    for how, times, moments in _in_time(frames):
        passes = _passes(moments, times, where)
        if len(passes) > 1:
            yield how, passes


def _in_time(frames: Sequence[Frame]) -> Iterator[tuple[str, list[float], Groups]]:
    """Yield, by each time or number that all frames have, its values in order and the frames of each."""
    for how, when in _WHEN.items():
        moments: dict[float, list[Frame]] = defaultdict(list)
        for frame in frames:
            if (time := when(frame)) is None:
                break
            moments[time].append(frame)
        else:
            times = sorted(moments)
            yield how, times, [moments[time] for time in times]


def _passes(moments: Groups, times: Sequence[float], where: Places) -> Groups:
    """Cut what was taken one after the other where it turns back; none if it turns back too often."""
    spans = [_span(moment, where) for moment in moments]
    starts = [0]
    low, high = spans[0]
    direction = 0
    for i, (begin, end) in enumerate(spans[1:], 1):
        upwards, downwards = begin >= high - SAME_PLACE_MM, end <= low + SAME_PLACE_MM
        direction = direction or (upwards - downwards)
        if upwards if direction > 0 else downwards:
            low, high = min(low, begin), max(high, end)
            continue
        if len(starts) == MAX_PASSES:
            return []
        # The outermost slice may be the last of this pass, or the first of one that comes back from beyond it.
        turn = i - 1 if i - starts[-1] > 2 and _belongs_to_next(i - 1, spans, times) else i
        starts.append(turn)
        low, high = (min(s[0] for s in spans[turn : i + 1]), max(s[1] for s in spans[turn : i + 1]))
        direction = 0 if turn == i else (1 if begin > spans[turn][0] else -1)
    return [[f for moment in moments[a:b] for f in moment] for a, b in pairwise([*starts, len(moments)])]


def _belongs_to_next(i: int, spans: Sequence[tuple[float, float]], times: Sequence[float]) -> bool:
    """Return True if moment ``i``, the outermost, is closer in time to the next one, or its step fits that better."""
    before, after = times[i] - times[i - 1], times[i + 1] - times[i]
    if max(before, after) > 1.5 * min(before, after):
        return after < before
    usual, last, next_ = (abs(spans[k + 1][0] - spans[k][0]) for k in (i - 2, i - 1, i))
    return abs(last - usual) > abs(next_ - usual) + SAME_PLACE_MM


def _span(frames: Sequence[Frame], where: Places) -> tuple[float, float]:
    heights = [where[f.key] for f in frames]
    return min(heights), max(heights)


def _shared(a: Sequence[Frame], b: Sequence[Frame], where: Places) -> float | None:
    """Return which part of the shorter one's extent both cover, None where they lie beside each other."""
    (low_a, high_a), (low_b, high_b) = _span(a, where), _span(b, where)
    low, high = max(low_a, low_b) - SAME_PLACE_MM, min(high_a, high_b) + SAME_PLACE_MM
    if not all(any(low <= where[f.key] <= high for f in part) for part in (a, b)):
        return None
    return max(0.0, min(high_a, high_b) - max(low_a, low_b)) / max(min(high_a - low_a, high_b - low_b), 1e-6)


def _by_turns(parts: Groups, where: Places) -> bool:
    """Return True if several of the parts, which make up most of the frames, cover the same anatomy."""
    largest = max(map(len, parts), default=0)
    large = [p for p in parts if len(p) >= max(3, largest / 2)]
    if len(large) < 2 or sum(map(len, large)) < 0.75 * sum(map(len, parts)):
        return False
    return any((_shared(a, b, where) or 0.0) > BY_TURNS for a, b in combinations(large[:MAX_PASSES], 2))


def _alternates(parts: Groups, where: Places, content: FrameContent) -> bool:
    """Return True if slices are less like the nearest of another part than like the nearest of their own."""
    part_of = {f.key: i for i, part in enumerate(parts) for f in part}
    ordered = sorted((f for p in parts for f in p), key=lambda f: where[f.key])
    other = own = 0.0
    for i in np.unique(np.linspace(0, len(ordered) - 1, _SAMPLES + 2).astype(int)[1:-1]):
        frame = ordered[i]
        by_distance = sorted(ordered, key=lambda f: abs(where[f.key] - where[frame.key]))[1:]
        near = next((f for f in by_distance if part_of[f.key] != part_of[frame.key]), None)
        far = next((f for f in by_distance if part_of[f.key] == part_of[frame.key]), None)
        if near is None or far is None:
            continue
        here = content.coarse(frame)
        other += unlikeness(here, content.coarse(near))
        own += unlikeness(here, content.coarse(far))
    return other > _ALTERNATES * own
