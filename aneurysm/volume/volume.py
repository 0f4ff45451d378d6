"""Series -> Volume: slices are decoded one by one, shrunk in plane, added into the planes they touch, and dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aneurysm.dicom.content import PixelContent
from aneurysm.dicom.frame import Decision, Frame, FrameKey
from aneurysm.dicom.parts import gap_limit
from aneurysm.dicom.pixels import PixelReader
from aneurysm.dicom.series import Series
from aneurysm.dicom.stack import Stack, stack_frames
from aneurysm.errors import PixelError, Reason, SeriesRejectedError
from aneurysm.spec import CacheSpec, SlicePolicy
from aneurysm.volume.agreement import DAMAGED
from aneurysm.volume.blocks import HeadBlocks, Survey
from aneurysm.volume.grid import TargetGrid, field_of_view, lay_grid, target_grid
from aneurysm.volume.head_and_vessels import head_blocks, survey
from aneurysm.volume.intensity import StoredIntensity, ct_intensity, mr_intensity, to_physical
from aneurysm.volume.modality import dicom_modality
from aneurysm.volume.parts import Coverage, OtherPart, PartMerger
from aneurysm.volume.stored_values import Meaning, StoredValues, stored_values
from aneurysm.volume.weights import InPlane, axis_weights

_ALL_AIR_HU: Final = -900.0
_UNREADABLE: Final = "unreadable_slice"


@dataclass(frozen=True)
class Volume:
    """
    One series on the target grid.

    ``voxels`` are stored integers (z, y, x); ``affine_lps`` maps (z, y, x, 1) to (x, y, z, 1) in LPS mm. ``stack``
    says which frames it was made of, ``decisions`` what was decided on the way.
    """

    voxels: NDArray[Any]
    affine_lps: NDArray[np.float64]
    intensity: StoredIntensity
    spacing_mm: tuple[float, float, float]
    stack: Stack
    decisions: list[Decision]

    @cached_property
    def head_blocks(self) -> HeadBlocks:
        """Where the head is."""
        return head_blocks(self.voxels, self.intensity, self.spacing_mm)

    @cached_property
    def survey(self) -> Survey:
        """Where head and vessels are; the search for vessels takes most of the time."""
        return survey(self.voxels, self.intensity, self.spacing_mm)


def assemble(series: Series, spec: CacheSpec) -> Volume:
    """
    Turn ``series`` into a volume on the grid of ``spec``.

    Raises
    ------
    SeriesRejectedError
        With the reason for which it can't be one.
    """
    ct = dicom_modality(series) == "CT"
    reader = PixelReader()
    content = PixelContent(reader)
    decisions = list(series.decisions)
    stack = stack_frames(series.frames, spec.slices, content)
    allowed = allowed_losses(series, stack, spec.slices)
    lost: dict[FrameKey, str] = {}

    def without(bad: list[Frame], code: str) -> Stack:
        lost.update((f.key, code) for f in bad)
        rest = stack_frames([f for f in series.frames if f.key not in lost], spec.slices, content)
        return replace(rest, dropped=rest.dropped | lost)

    def agreeing(stack: Stack) -> tuple[Stack, Meaning]:
        while (meaning := stored_values(stack.all_frames, reader, ct=ct)).damaged:
            decisions.extend(meaning.decisions)
            if len(lost) + len(meaning.damaged) > allowed:
                raise SeriesRejectedError(
                    Reason.UNSUPPORTED_PIXELS, "; ".join(d.detail for d in meaning.decisions if d.code == DAMAGED)
                )
            stack = without(meaning.damaged, DAMAGED)
        return stack, meaning

    stack, meaning = agreeing(stack)
    try:
        grid, voxels, intensity = _resample(stack, meaning, spec, reader, ct=ct)
    except PixelError as first:
        # Rare, so only now is every frame tried.
        bad: list[Frame] = []
        for frame in stack.all_frames:
            if not _readable(frame, reader):
                bad.append(frame)
            if len(lost) + len(bad) > allowed:
                raise SeriesRejectedError(
                    Reason.UNREADABLE_PIXELS,
                    f"{len(bad)} or more of {len(stack.all_frames)} slices; the first: {first}",
                ) from first
        decisions.append(Decision(_UNREADABLE, f"{len(bad)} of {len(stack.all_frames)} slices; the first: {first}"))
        try:
            rest = without(bad, _UNREADABLE)
        except SeriesRejectedError as error:
            # A gap that only unreadable slices leave is none of the series.
            detail = f"{len(bad)} slices, without which the others are no volume ({error.detail}); the first: {first}"
            raise SeriesRejectedError(Reason.UNREADABLE_PIXELS, detail) from error
        stack, meaning = agreeing(rest)
        try:
            grid, voxels, intensity = _resample(stack, meaning, spec, reader, ct=ct)
        except PixelError as error:
            raise SeriesRejectedError(Reason.UNREADABLE_PIXELS, str(error)) from error
    decisions += [*stack.decisions, *meaning.decisions]
    if grid.cropped:
        decisions.append(Decision("cropped", "to the region of the spec"))
    return Volume(grid.to_cached(voxels), grid.affine_lps, intensity, spec.spacing_mm, stack, decisions)


def allowed_losses(series: Series, stack: Stack, policy: SlicePolicy) -> float:
    """
    Return how many slices of ``stack`` may turn out unreadable, or contradict the others: they count as missing ones.

    Raises
    ------
    SeriesRejectedError
        Too many files are damaged before their pixels already.
    """
    allowed = policy.max_unreadable_fraction * (len(stack.all_frames) + series.damaged) - series.damaged
    if allowed < 0:
        raise SeriesRejectedError(
            Reason.UNREADABLE_PIXELS,
            f"{series.damaged} files are damaged before their pixels, and {len(stack.all_frames)} slices are not",
        )
    return allowed


def _readable(frame: Frame, reader: PixelReader) -> bool:
    try:
        reader.read(frame)
    except PixelError:
        return False
    return True


def _resample(
    stack: Stack, meaning: Meaning, spec: CacheSpec, reader: PixelReader, *, ct: bool
) -> tuple[TargetGrid, NDArray[Any], StoredIntensity]:
    """Return the grid and the voxels on it: (slice, column, row), stored integers."""
    grid = target_grid(stack, spec)
    source = _Physical(reader, spec, ct=ct)
    # CT's mapping is known beforehand, so planes become integers as they are finished, at half the memory.
    intensity = ct_intensity(spec.intensity.CT, spec.storage) if ct else None
    slices, rows, columns = grid.axes
    shape = (slices.size, columns.size, rows.size)
    voxels: NDArray[Any] = np.empty(shape, np.float32 if intensity is None else intensity.dtype)
    for k, plane in _all_planes(stack, meaning, grid, spec, source):
        plane += source.air
        voxels[k] = plane if intensity is None else intensity.store(plane)
    if intensity is None:
        mapping = mr_intensity(spec.intensity.MR, spec.storage, voxels)
        stored = np.empty(shape, mapping.dtype)
        for k in range(len(voxels)):
            stored[k] = mapping.store(voxels[k])
        return grid, stored, mapping
    if voxels.min() == voxels.max():
        # A rescale that is wrong sends all of CT beyond what is kept.
        value = to_physical(float(voxels.flat[0]), intensity.scale, intensity.offset)
        raise SeriesRejectedError(Reason.NO_SIGNAL, f"all voxels are {value:g} HU: there is no image")
    if (brightest := to_physical(float(voxels.max()), intensity.scale, intensity.offset)) < _ALL_AIR_HU:
        raise SeriesRejectedError(
            Reason.IMPLAUSIBLE_HU, f"no voxel is above {brightest:g} HU: there is nothing but air"
        )
    return grid, voxels, intensity


def _all_planes(
    stack: Stack, meaning: Meaning, grid: TargetGrid, spec: CacheSpec, source: _Physical
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield each plane of the grid, (columns, rows) above air, with its number."""
    ends = np.cumsum([len(part.frames) for part in stack.parts])
    values = [meaning.values[end - len(part.frames) : end] for part, end in zip(stack.parts, ends, strict=True)]
    geometry = stack.geometry
    if not stack.others:
        yield from _planes(stack, values[0], grid, geometry.slice_spacing_mm / 2, source)
        return
    reach = gap_limit([part.geometry.slice_spacing_mm for part in stack.parts], spec.slices)
    others = [
        _other_part(part, of_part, reach, spec, source) for part, of_part in zip(stack.others, values[1:], strict=True)
    ]
    merger = PartMerger(Coverage.of(stack), grid, others, reach)
    missing = set(range(grid.axes[0].size))
    for k, plane in _planes(stack, values[0], grid, reach, source):
        missing.remove(k)
        yield k, merger.plane(k, plane)
    for k in sorted(missing):
        yield k, merger.plane(k, None)


def _other_part(
    part: Stack, values: Sequence[StoredValues], reach_mm: float, spec: CacheSpec, source: _Physical
) -> OtherPart:
    """Resample a part on its own axes, as far beyond its slices as gaps between parts may be wide."""
    geometry = part.geometry
    low, high = field_of_view(geometry, part.frames[0].format, reach_mm)
    whole = spec.model_copy(update={"region": None})
    grid = lay_grid(geometry.origin, geometry.axes[[2, 1, 0]], low, high, whole)
    slices, rows, columns = grid.axes
    voxels = np.zeros((slices.size, columns.size, rows.size), np.float32)
    for k, plane in _planes(part, values, grid, reach_mm, source):
        voxels[k] = plane
    return OtherPart(Coverage.of(part), grid, voxels)


def _planes(
    part: Stack, values: Sequence[StoredValues], grid: TargetGrid, margin_mm: float, source: _Physical
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """
    Yield the planes of a part on a grid that has its axes, (columns, rows) above air, each with its number.

    The outermost slices stand for ``margin_mm`` beyond them; planes further out are not yielded.
    """
    geometry, fmt = part.geometry, part.frames[0].format
    slices, rows, columns = grid.axes
    across = axis_weights(geometry.positions_mm, slices.positions_mm, slices.spacing_mm, margin_mm=margin_mm)
    by_slice = across.tocsc()
    in_plane = InPlane((fmt.rows, fmt.columns), geometry.spacing_mm, rows, columns)
    last = np.array(
        [across.indices[i:j].max(initial=-1) for i, j in zip(across.indptr, across.indptr[1:], strict=False)]
    )
    open_planes: dict[int, NDArray[np.float32]] = {}
    for i, value in enumerate(values):
        touched = slice(by_slice.indptr[i], by_slice.indptr[i + 1])
        if touched.start == touched.stop:
            continue  # beyond the region, or between target planes
        plane = source.plane(value, in_plane, geometry.shifts_mm[i])
        for k, weight in zip(by_slice.indices[touched], by_slice.data[touched], strict=True):
            if k in open_planes:
                open_planes[k] += weight * plane
            else:
                open_planes[k] = weight * plane
            if last[k] == i:
                yield int(k), open_planes.pop(k)


class _Physical:
    """Reads frames as physical values above air, on the target's in-plane grid."""

    def __init__(self, reader: PixelReader, spec: CacheSpec, *, ct: bool) -> None:
        self._reader, self._ct = reader, ct
        self._clip = spec.intensity.CT.clip_hu
        self.air = self._clip[0] if ct else 0.0

    def plane(self, values: StoredValues, in_plane: InPlane, shift_mm: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return (columns, rows) of the target: physical value minus air, so that 0 is air beyond a slice, too."""
        pixels = values.read(self._reader, self.air)
        if self._ct:
            pixels = values.clip(pixels, *self._clip)
        along = (float(shift_mm[1]), float(shift_mm[0]))
        plane = in_plane(pixels, along)
        # Weights sum to 1, so the rescale may follow them, on a fifth of the pixels.
        if values.slope != 1.0:
            plane *= np.float32(values.slope)
        if values.intercept != self.air:
            plane += np.float32(values.intercept - self.air)
        rows, columns = in_plane.covered(along)
        if not rows.all():
            plane[:, ~rows] = 0
        if not columns.all():
            plane[~columns, :] = 0
        return plane
