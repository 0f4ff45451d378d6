"""Ages and sexes of patients -> counts by decade in which nobody can be picked out: the page may be passed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from aneurysm.report.intervals import FEWEST

SEXES: Final = ("female", "male")
_OLD: Final = 9
"""The decade from which on all ages are one: so few are 90 or older that an age would tell who it is."""


@dataclass(frozen=True)
class AgeGroup:
    """Patients of neighbouring decades: from ``low`` up to, and without, ``high`` years; None: of any age."""

    low: int | None
    high: int | None
    patients: int

    def __str__(self) -> str:
        if self.low is None:
            return "all ages" if self.high is None else f"under {self.high}"
        return f"{self.low} and over" if self.high is None else f"{self.low} to {self.high - 1}"


@dataclass(frozen=True)
class AgeTable:
    """
    Patients by sex and age.

    Attributes
    ----------
    groups
        By sex; no group has fewer than `FEWEST` patients, and a sex with fewer has none.
    others
        Patients who are in no group: age or sex are not known, or their sex has too few.
    """

    groups: dict[str, list[AgeGroup]]
    others: int


def age_table(patients: Iterable[tuple[int | None, str]]) -> AgeTable:
    """
    Count patients, (age in years, sex), by sex and decade.

    Decades with fewer than `FEWEST` patients of a sex are put together with those that follow, the last with those
    before: a count that is left out could be worked out from the total. The youngest and the oldest group are open.
    """
    decades: dict[str, Counter[int]] = {sex: Counter() for sex in SEXES}
    total = 0
    for age, sex in patients:
        total += 1
        if age is not None and sex in decades:
            decades[sex][min(age // 10, _OLD)] += 1
    groups = {sex: _merged(counts) for sex, counts in decades.items()}
    shown = sum(group.patients for own in groups.values() for group in own)
    return AgeTable(groups, total - shown)


def _merged(counts: Counter[int]) -> list[AgeGroup]:
    if counts.total() < FEWEST:
        return []
    edges: list[int] = []  # the first decade of each group
    sizes: list[int] = []
    begins = True
    for decade in range(min(counts), max(counts) + 1):
        if begins:
            edges.append(decade)
            sizes.append(0)
        sizes[-1] += counts[decade]
        begins = sizes[-1] >= FEWEST
    if sizes[-1] < FEWEST:
        last = sizes.pop()
        edges.pop()
        sizes[-1] += last
    ends = [*(10 * edge for edge in edges[1:]), None]
    begin_years = [None, *(10 * edge for edge in edges[1:])]
    return [AgeGroup(low, high, n) for low, high, n in zip(begin_years, ends, sizes, strict=True)]
