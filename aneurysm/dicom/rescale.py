"""One frame's header -> its Rescale: from the functional groups, the top level, or a real world value mapping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydicom.dataset import Dataset

from aneurysm.dicom.attributes import first_item, items_of, number_of, value_of
from aneurysm.dicom.frame import Rescale, modality_of
from aneurysm.dicom.header import Header

_NO_UNIT: Final = frozenset({"", "1", "{}", "NO UNITS", "UNSPECIFIED", "US"})
"""What says nothing of what the numbers are."""
_HOUNSFIELD: Final = frozenset({"[HNSF'U]", "HNSF'U", "HOUNSFIELD"})


def header_rescale(header: Header) -> Rescale:
    """Return the rescale of the top level of one file."""
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    unit = _unit(header.get("RescaleType"))
    if slope is None and intercept is None:
        return _real_world([header.real_world], modality_of(header)) or Rescale(unit=unit)
    return Rescale(slope, intercept, unit)


def frame_rescale(top: Rescale, groups: Sequence[Dataset], modality: str) -> Rescale:
    """Return the rescale of one frame by its functional ``groups`` (its own, then the shared ones), else ``top``."""
    transform = first_item(groups, "PixelValueTransformationSequence")
    slope, intercept = number_of(transform, "RescaleSlope"), number_of(transform, "RescaleIntercept")
    unit = _unit(value_of(transform, "RescaleType"))
    if slope is not None or intercept is not None:
        beside = Rescale() if top.real_world else top
        return Rescale(
            beside.slope if slope is None else slope,
            beside.intercept if intercept is None else intercept,
            unit or beside.unit,
        )
    if top.present and not top.real_world:
        return top
    mapped = _real_world([items_of(group, "RealWorldValueMappingSequence") for group in groups], modality)
    return mapped or (top if top.present or not unit else Rescale(unit=unit))


def is_malformed(groups: Sequence[Dataset]) -> bool:
    """Return True if the functional ``groups`` have a slope or intercept that is not a number."""
    transform = first_item(groups, "PixelValueTransformationSequence")
    return any(
        keyword in transform and number_of(transform, keyword) is None and _is_filled(transform, keyword)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )


def _real_world(sequences: Sequence[Sequence[Dataset]], modality: str) -> Rescale | None:
    """
    Return the linear mapping to real world values (PS3.3 C.7.6.16.2.11), None if there is none or it has no unit.

    CT may have several, in HU and in others: the one in HU counts. Where there is no such, one in another unit says
    that the pixels are no HU. A mapping by a look-up table leaves slope and intercept open, and so has no use.
    """
    items = next((s for s in sequences if any(map(len, s))), ())
    mappings = {m for m in (_mapping(item) for item in items) if m is not None}
    if modality == "CT":
        hounsfield = {m for m in mappings if m.unit == "HU"}
        mappings = hounsfield or {m for m in mappings if m.unit}
    return mappings.pop() if len(mappings) == 1 else None


def _mapping(item: Dataset) -> Rescale | None:
    slope, intercept = number_of(item, "RealWorldValueSlope"), number_of(item, "RealWorldValueIntercept")
    if not slope or intercept is None:
        return None
    code = value_of(first_item([item], "MeasurementUnitsCodeSequence"), "CodeValue")
    return Rescale(slope, intercept, _unit(code), real_world=True)


def _unit(text: object) -> str:
    """Return a unit in capitals: HU by whichever of its names, "" for what is none."""
    unit = str(text or "").strip().upper()
    return "HU" if unit in _HOUNSFIELD else "" if unit in _NO_UNIT else unit


def _is_filled(dataset: Dataset, keyword: str) -> bool:
    value = dataset.get_item(keyword).value
    return value is not None and bool(str(value.decode("latin-1") if isinstance(value, bytes) else value).strip(" \0"))
