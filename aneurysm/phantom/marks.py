"""Lesions and shots -> what the annotators wrote: localizer rows, and the truth about each aneurysm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aneurysm.labels import SITES
from aneurysm.phantom.acquisition import Acquisition
from aneurysm.phantom.branches import mask_value
from aneurysm.phantom.dicom_writer import multiframe_uid
from aneurysm.phantom.plan import SeriesPlan, make_uid
from aneurysm.phantom.pose import Vector
from aneurysm.phantom.render import Scene
from aneurysm.phantom.shots import Shot, copy_uid
from aneurysm.phantom.truth import LesionTruth
from aneurysm.types import point

LocalizerRow = tuple[str, str, str, str]
"""The columns of train_localizers.csv: SeriesInstanceUID, SOPInstanceUID, coordinates, location."""


def mark_lesions(
    plan: SeriesPlan, scene: Scene, acquisition: Acquisition, shots: list[Shot]
) -> tuple[list[LesionTruth], list[LocalizerRow]]:
    """Mark each lesion on the nearest slice, as the plan's quirks allow."""
    truths = [_mark(plan, scene, acquisition, shots, i) for i in range(len(scene.lesions))]
    if plan.has("same_point"):
        # Two sites that annotators confuse: the neighbours in the list of labels.
        first = truths[0]
        at = SITES.index(first.site)
        other = next(s for s in (*SITES[at + 1 :], *SITES) if s not in {t.site for t in truths})
        truths.append(replace(first, site=other, value=mask_value(first.site), mark="same_point"))
    rows = [(plan.uid, t.sop_uid, _coordinates(t), t.site) for t in truths if t.mark not in ("missing", "not_imaged")]
    return truths, rows


def _mark(plan: SeriesPlan, scene: Scene, acquisition: Acquisition, shots: list[Shot], number: int) -> LesionTruth:
    lesion = scene.lesions[number]
    center = scene.pose.to_lps(lesion.center[None])[0]
    true, assumed = acquisition.true, acquisition.assumed
    k, x, y = true.locate(center)
    x, y = round(x, 4), round(y, 4)
    order = next(i for i, s in enumerate(shots) if s.slice == k and s.volume == 0 and not s.copy)
    # Frames of a stripped file lie where their number says; elsewhere each slice knows its own place.
    index = order if not acquisition.patient_space else k
    radius = lesion.radius_mm * float(np.cbrt(np.prod(scene.pose.scale)))
    truth = LesionTruth(
        site=lesion.site,
        value=lesion.value,
        center_lps=point(center if acquisition.patient_space else _assumed(acquisition, center, index)),
        radius_mm=radius,
        side_mm=float((center - scene.pose.origin_lps) @ scene.pose.left),
        point_lps=point(assumed.point(index, x, y)),
        sop_uid=multiframe_uid(plan) if plan.multiframe else shots[order].sop_uid,
        x=x,
        y=y,
        frame=order if plan.multiframe else None,
    )
    offset = abs(float((true.point(k, x, y) - center) @ true.normal))
    nearest = max(radius, 0.5 * true.gap_mm) + 1.0
    if offset > nearest or not (-0.5 <= x <= true.shape[1] - 0.5 and -0.5 <= y <= true.shape[0] - 0.5):
        return replace(truth, mark="not_imaged", point_lps=None, sop_uid="", x=None, y=None, frame=None)
    if plan.has("no_localizer") and number == 0:
        return replace(truth, mark="missing", point_lps=None, sop_uid="", x=None, y=None, frame=None)
    if plan.has("unknown_image") and number == 0:
        return replace(truth, mark="unknown_image", sop_uid=make_uid(plan.seed, plan.index, "nowhere"))
    if plan.has("marked_duplicate"):
        return replace(truth, mark="copy", sop_uid=copy_uid(plan, k))
    return truth


def _assumed(acquisition: Acquisition, center: Vector, index: int) -> Vector:
    """Return a sac's centre in the space that readers assume: as far beside its slice as it truly is."""
    true, assumed = acquisition.true, acquisition.assumed
    k, x, y = true.locate(center)
    beside = float((center - true.point(k, x, y)) @ true.normal)
    forward = true.gap_mm and float((true.positions_lps[-1] - true.positions_lps[0]) @ true.normal)
    return assumed.point(index, x, y) + assumed.normal * (beside if forward >= 0 else -beside)


def _coordinates(truth: LesionTruth) -> str:
    """Return the text of the column ``coordinates``: a Python dict."""
    point: dict[str, float | int] = {"x": truth.x or 0.0, "y": truth.y or 0.0}
    if truth.frame is not None:
        point["f"] = truth.frame
    return repr(point)
