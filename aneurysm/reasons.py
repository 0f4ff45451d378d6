"""Exception -> Reason: why one series could not be read, in words for a table."""

from __future__ import annotations

import traceback
from pathlib import Path

from aneurysm.errors import CacheError, Reason, SeriesRejectedError, StoreError


def reason_of(error: Exception) -> tuple[Reason, str]:
    """Return the reason code and the detail of what went wrong with one series."""
    match error:
        case SeriesRejectedError():
            return error.reason, error.detail
        case MemoryError():
            return Reason.OUT_OF_MEMORY, "not enough memory for this series; run with fewer workers"
        case CacheError() | StoreError():
            return Reason.READ_ERROR, str(error)
        case OSError():
            return Reason.READ_ERROR, f"{type(error).__name__}: {error.strerror or error}"
    # A fault of this program: say where, so that a report of it is of use. No values: they might identify a patient.
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return Reason.INTERNAL_ERROR, f"{type(error).__name__} at {place}; please report it"
