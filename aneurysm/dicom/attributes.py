"""A pydicom data set -> values and items of its elements, whatever the bytes are: pydicom converts them only now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Return an element's value, None if it is absent or can't be converted."""
    try:
        return dataset.get(keyword)
    except Exception:  # noqa: BLE001 - it raises whatever the bytes provoke
        return None


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """Return an element's value if it is one finite number, else None."""
    try:
        number = float(value_of(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def items_of(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence, none if it is absent or no sequence."""
    value = value_of(dataset, keyword)
    if value is None or isinstance(value, (str, bytes, float, int)):
        return []
    return [item for item in value if isinstance(item, Dataset)]


def first_item(groups: Sequence[Dataset], keyword: str) -> Dataset:
    """Return the first item of a sequence, of the first group that has one with something in it; else an empty one."""
    for group in groups:
        for item in items_of(group, keyword)[:1]:
            if len(item):
                return item
    return Dataset()
