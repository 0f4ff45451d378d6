"""Stack -> shots: the images that are stored, in order, with copies, second volumes, scouts and what else is there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from aneurysm.phantom.plan import SeriesPlan, make_uid
from aneurysm.phantom.pose import Vector
from aneurysm.phantom.scanner import SliceStack


@dataclass(frozen=True)
class Shot:
    """
    One stored image.

    ``slice`` is the index of the slice whose pixels it holds, None for an image that is not of the stack; ``volume``
    counts the volumes of a series that has several; ``copy`` says that another shot holds the same pixels. ``shape``
    is that of the stored matrix, of which the slice may be cropped to ``shape``.
    """

    sop_uid: str
    slice: int | None
    position_lps: Vector
    row: Vector
    column: Vector
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    number: int | None = None
    volume: int = 0
    copy: bool = False
    rgb: bool = False
    broken: bool = False
    tags: dict[str, Any] = field(default_factory=dict)


def list_shots(plan: SeriesPlan, stack: SliceStack, marked: list[int]) -> list[Shot]:
    """
    Return the images of a series in the order of their InstanceNumber; ``marked`` are slices with an aneurysm.

    Of a multi-frame file they are its frames.
    """
    rng = plan.streams("shots")
    shots = [_of_slice(plan, stack, k) for k in range(len(stack))]
    if plan.has("shuffled_frames"):
        shots = [shots[i] for i in rng.permutation(len(shots))]
    if plan.has("one_position"):
        shots = [replace(s, position_lps=shots[0].position_lps) for s in shots]
    if plan.has("no_majority"):
        cropped = (stack.shape[0] - 8, stack.shape[1] - 8)
        shots = [replace(s, shape=cropped) if i % 2 else s for i, s in enumerate(shots)]
    shots = _with_duplicates(plan, shots, marked, rng)
    shots = _with_second_volume(plan, shots)
    shots = _with_others(plan, stack, shots, rng)
    if plan.has("colour"):
        shots = [replace(s, rgb=True) for s in shots]
    shots = _broken(plan, shots, marked, rng)
    return _numbered(plan, shots, rng)


def _of_slice(plan: SeriesPlan, stack: SliceStack, k: int) -> Shot:
    return Shot(
        sop_uid=make_uid(plan.seed, plan.index, "slice", k),
        slice=k,
        position_lps=stack.positions_lps[k],
        row=stack.row,
        column=stack.column,
        spacing_mm=stack.spacing_mm,
        shape=stack.shape,
    )


def _with_duplicates(plan: SeriesPlan, shots: list[Shot], marked: list[int], rng: np.random.Generator) -> list[Shot]:
    if not plan.has("duplicates", "marked_duplicate"):
        return shots
    chosen = set(rng.choice(len(shots), size=min(3, len(shots)), replace=False).tolist())
    if plan.has("marked_duplicate"):
        chosen.update(marked)
    out = []
    for i, shot in enumerate(shots):
        out.append(shot)
        if i in chosen:
            out.append(replace(shot, copy=True, sop_uid=copy_uid(plan, i)))
    return out


def copy_uid(plan: SeriesPlan, k: int) -> str:
    """SOPInstanceUID of the copy of a slice."""
    return make_uid(plan.seed, plan.index, "copy", k)


_SECOND: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "echoes": ({"EchoNumbers": 1, "EchoTime": "20"}, {"EchoNumbers": 2, "EchoTime": "90"}),
    "phases": ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
    "magnitude_phase": (
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]},
    ),
    "dual_energy": ({"KVP": "80"}, {"KVP": "140"}),
    "time_blocks": ({}, {}),
    "mixed_volumes": ({}, {}),
}


def _with_second_volume(plan: SeriesPlan, shots: list[Shot]) -> list[Shot]:
    kind = next((k for k in _SECOND if plan.has(k)), None)
    if kind is None:
        return shots
    first, second = _SECOND[kind]
    one = [replace(s, tags=dict(first)) for s in shots]
    two = [
        replace(s, volume=1, tags=dict(second), sop_uid=make_uid(plan.seed, plan.index, "second", i))
        for i, s in enumerate(shots)
    ]
    if kind == "mixed_volumes":
        # Interleaved, so that no block of numbers tells them apart; now one first, now the other.
        return [s for i, pair in enumerate(zip(one, two, strict=True)) for s in (pair if i % 2 else pair[::-1])]
    return one + two


def _with_others(plan: SeriesPlan, stack: SliceStack, shots: list[Shot], rng: np.random.Generator) -> list[Shot]:
    """Scouts, small and coloured images, among the slices."""
    others: list[Shot] = []
    middle = stack.positions_lps.mean(axis=0)
    if plan.has("scouts"):
        down = np.array([0.0, 0, -1])
        for i, row in enumerate((np.array([0.0, 1, 0]), np.array([1.0, 0, 0]))):
            # A scout along the stack's own plane would differ by its matrix and spacing still.
            others.append(
                Shot(
                    sop_uid=make_uid(plan.seed, plan.index, "scout", i),
                    slice=None,
                    position_lps=middle - 120 * row - 120 * down,
                    row=row,
                    column=down,
                    spacing_mm=(2.5, 2.5),
                    shape=(96, 96),
                    tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
                )
            )
    if plan.has("small_slices"):
        for i in range(2):
            uid = make_uid(plan.seed, plan.index, "small", i)
            k = int(rng.integers(len(shots)))
            others.append(replace(shots[k], sop_uid=uid, slice=None, shape=(stack.shape[0] // 2, stack.shape[1] // 2)))
    if plan.has("colour_slice"):
        uid = make_uid(plan.seed, plan.index, "screen", 0)
        others.append(replace(shots[len(shots) // 2], sop_uid=uid, slice=None, rgb=True))
    for other in others:
        shots.insert(int(rng.integers(len(shots) + 1)), other)
    return shots


def _broken(plan: SeriesPlan, shots: list[Shot], marked: list[int], rng: np.random.Generator) -> list[Shot]:
    if plan.has("unreadable_few"):
        count = max(1, len(shots) // 30)
        own = [i for i, s in enumerate(shots) if s.slice is not None and s.slice not in marked][1:-1]
    elif plan.has("unreadable_many"):
        count = max(2, len(shots) // 3)
        own = list(range(len(shots)))
    else:
        return shots
    chosen = set(rng.choice(own, size=count, replace=False).tolist())
    return [replace(s, broken=True) if i in chosen else s for i, s in enumerate(shots)]


def _numbered(plan: SeriesPlan, shots: list[Shot], rng: np.random.Generator) -> list[Shot]:
    if plan.has("no_numbers"):
        return shots
    numbers = np.arange(1, len(shots) + 1)
    if plan.has("scrambled_numbers"):
        numbers = rng.permutation(numbers)
    return [replace(s, number=int(n)) for s, n in zip(shots, numbers, strict=True)]
