"""The most confident right and wrong answers about "Aneurysm Present", as projections with lesions and candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from aneurysm.errors import CacheError
from aneurysm.labels import SITES
from aneurysm.report.evaluation import Evaluation
from aneurysm.report.marks import INK, LESION_RADIUS_MM, PAPER, add_circle, add_cross, add_letters
from aneurysm.report.plot_style import jpeg, styled
from aneurysm.report.ranking import PRESENT
from aneurysm.report.results import NOTICE
from aneurysm.report.views import CT_PROJECTION_HU, View, ViewName, mr_projection_window, view
from aneurysm.volume.blocks import DARK_VESSELS
from aneurysm.volume.highlight import highlight_window, spare_points, without_bone

CASE_KINDS: tuple[tuple[str, str, int, int], ...] = (
    ("found", "Found: an aneurysm, and called so", 1, 1),
    ("missed", "Missed: an aneurysm, not called", 1, 0),
    ("false", "False alarm: called, but there is none", 0, 1),
    ("clear", "Rightly clear: none, and not called", 0, 0),
)
"""Name, title, truth and decision."""

SLAB_MM = 20.0
"""Thickness of what is projected: through a whole head, veins and what is left of the skull hide the vessels of CT."""
FIELD_MM = 120.0
"""Edge of what is shown."""
_VIEWS: tuple[ViewName, ...] = ("axial", "coronal", "sagittal")
_FAINT = "#b8b8b8"


@dataclass(frozen=True)
class Case:
    """
    A series of the gallery.

    Attributes
    ----------
    called
        Whether it was called positive.
    true_sites
        Where it has aneurysms.
    top_sites
        The three highest site scores.
    candidate, distance_mm
        Site and probability of the first candidate, and how far it is from the nearest lesion; None where not known.
    picture
        JPEG; None if the volume can't be read.
    problem
        Why not.
    """

    uid: str
    modality: str
    probability: float
    called: bool
    true_sites: tuple[str, ...]
    top_sites: tuple[tuple[str, float], ...]
    candidate: tuple[str, float] | None
    distance_mm: float | None
    picture: bytes | None
    problem: str = ""


def choose_cases(evaluation: Evaluation, each: int) -> dict[str, list[int]]:
    """
    Return for each of `CASE_KINDS` up to ``each`` series, the most confident first.

    Decisions are those of the other half's threshold, or of 0.5 where there is none.
    """
    p = evaluation.predictions
    called = evaluation.operation.called[:, PRESENT].copy()
    called = np.where(called < 0, p.probabilities[:, PRESENT] >= 0.5, called == 1)
    chosen = {}
    for kind, _, truth, decision in CASE_KINDS:
        series = np.flatnonzero((p.truth[:, PRESENT] == truth) & (called == bool(decision)))
        confidence = p.probabilities[series, PRESENT] * (1 if decision else -1)
        chosen[kind] = series[np.argsort(-confidence, kind="stable")][:each].tolist()
    return chosen


def draw_gallery(evaluation: Evaluation, each: int) -> dict[str, list[Case]]:
    """Draw the cases of `choose_cases`; nothing if there is no cache."""
    if evaluation.cache is None:
        return {}
    chosen = choose_cases(evaluation, each)
    return {kind: [_case(evaluation, i, decision == 1) for i in chosen[kind]] for kind, _, _, decision in CASE_KINDS}


def draw_case(
    voxels: NDArray[Any],
    affine_lps: NDArray[np.float64],
    modality: str,
    focus_lps_mm: NDArray[np.float64],
    lesions_lps_mm: NDArray[np.float64],
    candidate_lps_mm: NDArray[np.float64] | None,
    bone: NDArray[np.bool_] | None = None,
) -> Figure:
    """
    Draw three slabs about a point: projections along the axes of the volume, in mm, in radiological convention.

    Parameters
    ----------
    voxels
        (z, y, x), in HU or the scanner's units.
    focus_lps_mm
        (3,): the middle of the slabs.
    lesions_lps_mm
        (m, 3): circles, dashed if outside of the slab.
    candidate_lps_mm
        (3,): cross hairs, dotted if outside of the slab.
    bone
        Which voxels of CT are bone. It is left out, except about lesions and the candidate; see
        `aneurysm.volume.highlight`.
    """
    dark = modality == DARK_VESSELS
    if bone is not None:
        points = [*lesions_lps_mm, *(() if candidate_lps_mm is None else (candidate_lps_mm,))]
        spare_points(bone, affine_lps, points, LESION_RADIUS_MM)
        voxels = without_bone(voxels, bone, voxels.min())
    seen = [view(voxels, affine_lps, name) for name in _VIEWS]
    slabs = [one.slab(focus_lps_mm, SLAB_MM, minimum=dark) for one in seen]
    windows = [_window(slab, modality, without_skull=bone is not None) for slab in slabs]
    with styled():
        figure = Figure(figsize=(7.5, 2.8), layout="constrained", facecolor=PAPER)
        FigureCanvasAgg(figure)
        grid = figure.subplots(1, 3)
        for axes, one, slab, window in zip(grid, seen, slabs, windows, strict=True):
            axes.grid(visible=False)
            _draw_slab(axes, one, focus_lps_mm, slab, window)
            for lesion in lesions_lps_mm:
                near = one.distance_mm(lesion, focus_lps_mm) <= SLAB_MM / 2
                add_circle(axes, *one.in_picture_mm(lesion), near=near)
            if candidate_lps_mm is not None:
                near = one.distance_mm(candidate_lps_mm, focus_lps_mm) <= SLAB_MM / 2
                add_cross(axes, *one.in_picture_mm(candidate_lps_mm), near=near)
            kind = f"{'minimum' if dark else 'maximum'} of {SLAB_MM:g} mm{'' if bone is None else ', no bone'}"
            axes.set_title(f"{one.name}, {kind}", color=INK, fontsize=8, fontweight="normal", pad=16)
        figure.supxlabel(NOTICE, fontsize=7, color=_FAINT)  # pictures go astray from their page
    return figure


def _case(evaluation: Evaluation, i: int, called: bool) -> Case:
    p, found, cache = evaluation.predictions, evaluation.lesions, evaluation.cache
    assert cache is not None
    assert found is not None
    uid = str(p.uids[i])
    lesions = found.lps_mm[found.of(i)]
    candidate, candidate_lps, distance = None, None, None
    if evaluation.candidates is not None:
        mine = np.flatnonzero(evaluation.candidates.uids == uid)
        if len(mine):
            best = mine[np.argmax(evaluation.candidates.probabilities[mine])]
            candidate = (SITES[evaluation.candidates.sites[best]], float(evaluation.candidates.probabilities[best]))
            candidate_lps = evaluation.candidates.lps_mm[best]
            if len(lesions):
                distance = float(np.linalg.norm(lesions - candidate_lps, axis=1).min())
    scores = p.probabilities[i, :PRESENT]
    top = tuple((SITES[s], float(scores[s])) for s in np.argsort(-scores, kind="stable")[:3])
    true = tuple(SITES[s] for s in np.flatnonzero(p.truth[i, :PRESENT] == 1))
    picture, problem = None, ""
    try:
        volume = cache.volume(uid)
        affine = volume.affine_lps
        middle = affine @ [*(np.array(volume.shape) - 1) / 2, 1.0]
        focus = middle[:3]
        if candidate_lps is not None:
            focus = candidate_lps
        if len(lesions):
            nearest = 0 if candidate_lps is None else int(np.linalg.norm(lesions - candidate_lps, axis=1).argmin())
            focus = lesions[nearest]
        voxels = volume.read_physical((0, 0, 0), volume.shape)
        bone = volume.read_bone((0, 0, 0), volume.shape) if volume.has_bone else None
        picture = jpeg(draw_case(voxels, affine, str(p.modalities[i]), focus, lesions, candidate_lps, bone))
    except CacheError as error:
        problem = str(error)
    return Case(
        uid, str(p.modalities[i]), float(p.probabilities[i, PRESENT]), called, true, top, candidate, distance, picture,
        problem,
    )  # fmt: skip


def _window(projection: NDArray[np.float32], modality: str, *, without_skull: bool) -> tuple[float, float]:
    if without_skull:
        return highlight_window(projection)
    return CT_PROJECTION_HU if modality.startswith("CT") else mr_projection_window(projection)


def _draw_slab(
    axes: Axes,
    seen: View,
    focus: NDArray[np.float64],
    projection: NDArray[np.float32],
    window: tuple[float, float],
) -> None:
    height_mm, width_mm = seen.size_mm
    axes.imshow(
        projection, cmap="gray", vmin=window[0], vmax=window[1], extent=(0.0, width_mm, height_mm, 0.0),
        interpolation="bilinear",
    )  # fmt: skip
    x, y = seen.in_picture_mm(focus)
    axes.set_xlim(x - FIELD_MM / 2, x + FIELD_MM / 2)
    axes.set_ylim(y + FIELD_MM / 2, y - FIELD_MM / 2)
    axes.set_axis_off()
    add_letters(axes, seen.letters)
