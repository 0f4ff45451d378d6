"""Exception -> Reason: why one series could not be read, in words for a table."""

from __future__ import annotations

import traceback
from pathlib import Path

from aneurysm.errors import AneurysmError, CacheError, Reason, SeriesRejectedError, StoreError


def words_of(error: BaseException) -> str:
    """Return what a table or a log may hold of an error: no name of a file, which may be a patient's."""
    if isinstance(error, AneurysmError):
        return str(error)
    told = error.strerror if isinstance(error, OSError) else str(error)
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


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
            return Reason.READ_ERROR, words_of(error)
    # A fault of this program: say where, so that a report of it is of use. No values: they might identify a patient.
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return Reason.INTERNAL_ERROR, f"{type(error).__name__} at {place}; please report it"
