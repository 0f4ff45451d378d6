"""SeriesPlan -> Stack: the slices that the scanner makes, with the quirks of planes, matrix and slice positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.plan import SeriesPlan
from aneurysm.phantom.pose import Points, Pose
from aneurysm.phantom.scanner import Protocol, SliceStack, draw_protocol, plan_stack

ASSUMED_THIN_MM = (0.5, 0.5, 0.55)
ASSUMED_THICK_MM = (0.5, 0.5, 5.0)
ASSUMED_THIN_ABOVE = 80
"""What readers assume of a multi-frame file without geometry: rows, columns, slices; thin above this many frames."""


@dataclass(frozen=True)
class Acquisition:
    """
    The slices of a series, and the geometry that readers can know of them.

    ``assumed`` is the stack as its header describes it, or as a reader must assume it where the header is silent: the
    same as ``true`` but for the two quirks of missing and of default geometry.
    """

    true: SliceStack
    assumed: SliceStack
    spacing_tag_mm: float | None

    @property
    def patient_space(self) -> bool:
        """Whether the assumed geometry is the true one."""
        return self.assumed is self.true


def acquire(plan: SeriesPlan, pose: Pose, cover_lps: Points) -> Acquisition:
    """
    Lay the slices of a plan; the points ``cover_lps`` (n, 3), the aneurysms, are inside of the stack.

    The quirks that concern which files are stored are not seen here.
    """
    rng = plan.streams("acquisition")
    protocol = _protocol(plan, rng)
    stack = plan_stack(
        protocol,
        pose,
        plan.plane,
        rng,
        descending=plan.has("descending"),
        tilt_deg=_tilt(plan, rng),
        oblique_deg=float(rng.uniform(8, 25)) if plan.has("oblique") else _slight(plan, rng),
        cover_lps=cover_lps,
    )
    stack = _choose_slices(plan, stack, cover_lps, rng)
    return _as_told(plan, stack, protocol)


def _slight(plan: SeriesPlan, rng: np.random.Generator) -> float:
    """MR is commonly planned along the brain's own axes, a few degrees off the scanner's; CT hardly ever."""
    return float(rng.uniform(0, 6)) if plan.modality != "CTA" and rng.random() < 0.5 else 0.0


def _tilt(plan: SeriesPlan, rng: np.random.Generator) -> float:
    if plan.has("steep_tilt"):
        return 50.0
    return float(rng.choice([-1, 1]) * rng.uniform(6, 24)) if plan.has("tilt") else 0.0


def _protocol(plan: SeriesPlan, rng: np.random.Generator) -> Protocol:
    protocol = draw_protocol(plan.modality, plan.size, plan.plane, rng)
    rows, columns = protocol.shape
    if plan.has("stripped_multiframe"):
        return _assumed_protocol(plan)
    if plan.has("wide_matrix"):
        half = (protocol.pixel_mm[0] / 2, protocol.pixel_mm[1] / 2)
        protocol = replace(protocol, shape=(rows * 2, columns * 2), pixel_mm=half)
    if plan.has("non_square"):
        # The head is longer than it is broad, so a smaller field of view costs little on the sides.
        if rng.random() < 0.6:
            protocol = replace(protocol, shape=(rows, int(columns * rng.uniform(0.8, 0.92))))
        else:
            protocol = replace(protocol, shape=(int(rows * 0.95), columns))
    if plan.has("unequal_pixels"):
        stretch = float(rng.choice([1.25, 1.5]))
        between_rows = protocol.pixel_mm[0] * stretch
        protocol = replace(
            protocol, shape=(int(rows / stretch), columns), pixel_mm=(between_rows, protocol.pixel_mm[1])
        )
    if plan.has("neck"):
        protocol = replace(protocol, below_mm=float(rng.uniform(150, 185)))
    return protocol


def _assumed_protocol(plan: SeriesPlan) -> Protocol:
    """Return a protocol that the assumptions happen to fit, as in the real data; small ones see less of the head."""
    pixels = {"tiny": 112, "small": 224, "full": 400}[plan.size]
    if plan.modality == "MRI T2" or plan.size == "tiny":
        row, column, gap = ASSUMED_THICK_MM
        return Protocol((pixels, pixels), (row, column), gap, 5.0, 40.0, 50.0)
    row, column, gap = ASSUMED_THIN_MM
    return Protocol((pixels, pixels), (row, column), gap, gap, 30.0, 30.0)


def _choose_slices(plan: SeriesPlan, stack: SliceStack, cover_lps: Points, rng: np.random.Generator) -> SliceStack:
    """Move or leave out slices as the quirks say, but none in which an aneurysm would be marked."""
    n = len(stack)
    marked = [stack.locate(p)[0] for p in cover_lps]
    free = np.ones(n, dtype=bool)
    free[[0, n - 1]] = False
    for k in marked:
        free[max(0, k - 1) : k + 2] = False
    keep = np.ones(n, dtype=bool)
    if plan.has("jittered_gaps"):
        push = rng.uniform(-0.1, 0.1, n) * stack.gap_mm
        return replace(stack, positions_lps=stack.positions_lps + push[:, None] * _travel(stack))
    if plan.has("doubled_gaps"):
        above = max([2 * n // 3, *[k + 2 for k in marked]])
        keep[above + 1 : n - 1 : 2] = False
    if plan.has("missing_slices"):
        candidates = np.flatnonzero(free & np.roll(free, 1))
        keep[rng.choice(candidates, size=min(2, len(candidates)), replace=False)] = False
    if plan.has("stray_slices"):
        _cut_off_end(keep, marked, stack.gap_mm)
    if plan.has("large_gap"):
        hole = _hole(stack.gap_mm)
        middle = n // 2
        keep[middle - hole // 2 : middle - hole // 2 + hole] = False
    if plan.has("two_slices"):
        first = min(marked[0] if marked else n // 2, n - 2)
        keep[:] = False
        keep[[first, first + 1]] = True
    if plan.has("one_slice"):
        keep[:] = False
        keep[marked[0] if marked else n // 2] = True
    if plan.has("no_majority") and n % 2:
        keep[n - 1] = False
    stack = stack.keep(np.flatnonzero(keep))
    if plan.has("drifting"):
        aside = rng.uniform(-25, 25, (len(stack), 1)) * stack.row
        stack = replace(stack, positions_lps=stack.positions_lps + aside)
    return stack


def _cut_off_end(keep: npt.NDArray[np.bool_], marked: list[int], gap_mm: float) -> None:
    """Leave a hole before the last few slices, at the end from which the aneurysms are further."""
    n = len(keep)
    hole = _hole(gap_mm)
    tail = max(1, int(0.06 * (n - hole)))
    if (n - 1 - max(marked, default=0)) >= min(marked, default=n):
        keep[n - tail - hole : n - tail] = False
    else:
        keep[tail : tail + hole] = False


def _hole(gap_mm: float) -> int:
    """How many slices to leave out for a gap beyond the limit, which is 4 gaps or 20 mm."""
    return int(min(4 * gap_mm, 20.0) / gap_mm + 1e-6) + 1


def _travel(stack: SliceStack) -> Points:
    """Return the unit vector from slice to slice."""
    step = stack.positions_lps[-1] - stack.positions_lps[0]
    return np.asarray(step / np.linalg.norm(step))


def _as_told(plan: SeriesPlan, stack: SliceStack, protocol: Protocol) -> Acquisition:
    n = len(stack)
    steps = np.arange(n)[:, None]
    if plan.has("stripped_multiframe"):
        thin = n > ASSUMED_THIN_ABOVE
        row, column, gap = ASSUMED_THIN_MM if thin else ASSUMED_THICK_MM
        assumed = SliceStack(
            steps * gap * np.array([0.0, 0.0, 1.0]),
            np.array([1.0, 0, 0]),
            np.array([0.0, 1, 0]),
            (row, column),
            stack.shape,
            gap,
        )
        # Of the 25 tags this one is there, and its two values are the assumed ones.
        return Acquisition(stack, assumed, gap)
    if plan.has("default_geometry"):
        assumed = SliceStack(
            steps * protocol.gap_mm * np.array([0.0, 0.0, 1.0]),
            np.array([1.0, 0, 0]),
            np.array([0.0, 1, 0]),
            stack.spacing_mm,
            stack.shape,
            stack.thickness_mm,
        )
        return Acquisition(stack, assumed, protocol.gap_mm)
    if plan.has("lying_spacing"):
        return Acquisition(stack, stack, 18.0)
    return Acquisition(stack, stack, None if plan.modality == "CTA" else protocol.gap_mm)


def estimate_bytes(plan: SeriesPlan) -> int:
    """About how much a series takes on disk, uncompressed; no head is made for it."""
    protocol = _protocol(plan, plan.streams("acquisition"))
    voxels = protocol.shape[0] * protocol.shape[1] * (protocol.slices + 8)
    volumes = 1.0
    if plan.has("echoes", "phases", "magnitude_phase", "dual_energy", "time_blocks", "mixed_volumes"):
        volumes = 2.0
    if plan.has("mask", "nested_mask", "regridded_mask"):
        volumes += 2.0
    if plan.has("no_files", "no_images", "one_slice", "two_slices"):
        return 2**20
    return int(voxels * 2 * volumes) + 2048 * protocol.slices
