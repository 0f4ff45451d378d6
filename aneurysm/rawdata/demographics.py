"""train.csv -> age and sex by series, for pages about the data alone: neither goes into a cache, a plan or a log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aneurysm.rawdata.tables import read_series_rows

_AGE_COLUMN: Final = "patientage"
_SEX_COLUMN: Final = "patientsex"
_AGE: Final = re.compile(r"0*([0-9]{1,3})(?:[.,][0-9]+)?\s*[yY]?")
"""A number as tables have it, or DICOM's age string (063Y; ages of infants in months and weeks are none of these)."""
_OLDEST_YEARS: Final = 120
_SEXES: Final = {"f": "female", "female": "female", "m": "male", "male": "male"}


@dataclass(frozen=True, slots=True)
class Demographics:
    """Age in whole years, None where it is not known; ``sex`` is ``female``, ``male`` or empty."""

    age_years: int | None = None
    sex: str = ""


def read_demographics(path: Path) -> dict[str, Demographics]:
    """
    Return age and sex by series UID of a table as train.csv; nothing if there is no file.

    Both columns may be absent, and cells may hold anything: what is no age or sex is not known. Of a series that two
    rows contradict each other about, nothing is.

    Raises
    ------
    DataError
        The table can't be read.
    """
    known: dict[str, Demographics] = {}
    for uid, row in read_series_rows(path):
        cells = {name.casefold(): cell for name, cell in row.cells.items()}
        found = Demographics(_age(cells.get(_AGE_COLUMN, "")), _SEXES.get(cells.get(_SEX_COLUMN, "").casefold(), ""))
        known[uid] = found if known.get(uid, found) == found else Demographics()
    return known


def _age(text: str) -> int | None:
    match = _AGE.fullmatch(text)
    if match is None or int(match[1]) > _OLDEST_YEARS:
        return None
    return int(match[1])
