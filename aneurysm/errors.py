"""AneurysmError, its kinds, and the reason codes of series that are not in a cache."""

from __future__ import annotations

import errno
import traceback
from enum import StrEnum
from pathlib import Path


class AneurysmError(Exception):
    """Base of every error that this package raises on purpose; its message is fit to be shown to a user."""


class UsageError(AneurysmError, ValueError):
    """A wrong option or argument: the command ends with exit code 2."""


class RunNotFoundError(UsageError):
    """A cache has no record of a run, or none of that name: it may not have begun."""


class SpecError(UsageError):
    """A cache spec that can't be read, has an unknown key or an impossible value."""


class DataError(UsageError):
    """The data folder, or a table in it, is not what it should be."""


class PlanError(UsageError):
    """A plan of `aneurysm plan` that can't be read, was damaged, or is not of these data or this cache."""


class CacheError(AneurysmError):
    """A cache that can't be used as asked: missing, of another spec, damaged."""


class SpecMismatchError(CacheError, UsageError):
    """The cache was made with another spec than the one asked for."""


class PatientKeyError(CacheError, UsageError):
    """The key of patient_key is not the one that the cache was begun with, or can't be read."""


class DamagedCacheError(CacheError):
    """A volume, array or chunk that is not as it was written."""


class CacheNotFoundError(CacheError, FileNotFoundError):
    """There is no cache, or no such volume in it."""


class NoSpaceError(AneurysmError, OSError):
    """The disk is full, or has too little room for what was asked."""


class ClusterError(AneurysmError):
    """The Dask cluster was lost while it was at work; what is cached is complete."""


class StoreError(AneurysmError):
    """An object store fails, also when it is asked again; the message names the URL and what was asked of it."""


class StoreRefusedError(StoreError, UsageError):
    """An object store that can't be used as it was named: no such bucket, out of reach, or it does not let us."""


class SamplingError(UsageError):
    """Patches can't be drawn as asked: nothing to draw from, or settings that contradict each other."""


class LoaderError(AneurysmError):
    """Batches stopped coming: a worker died, or too many volumes are damaged."""


class DivergedError(AneurysmError):
    """The loss of a training run is no longer a number."""


class DeviceMemoryError(AneurysmError):
    """The GPU's, or the host's, memory does not hold a training step or a window."""


class InterruptedRunError(AneurysmError):
    """A training run was asked to stop by a signal, and has saved where it was."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class PixelError(AneurysmError):
    """The pixels of one frame can't be read; the message says which file and why."""


def system_error(error: BaseException) -> OSError | MemoryError | None:
    """
    Return the operating system's error that ``error`` is, or was raised over; None if there is none.

    Libraries wrap what reading raised. And they raise `OSError` of damaged content, too: without a number, or with that
    of a seek to before the file's beginning.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno not in (None, errno.EINVAL)):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


class Reason(StrEnum):
    """Why a series is not in the cache. The values stand in manifest.csv; docs/reasons.md explains each."""

    NO_FILES = "no_files"
    NO_IMAGES = "no_images"
    INVALID_UID = "invalid_uid"
    NO_GEOMETRY = "no_geometry"
    IMPLAUSIBLE_GEOMETRY = "implausible_geometry"
    TOO_FEW_SLICES = "too_few_slices"
    ONE_POSITION = "one_position"
    NO_MAJORITY = "no_majority"
    SEPARATE_PARTS = "separate_parts"
    GAP_TOO_LARGE = "gap_too_large"
    NOT_ALIGNED = "not_aligned"
    TILT_TOO_LARGE = "tilt_too_large"
    SEVERAL_VOLUMES = "several_volumes"
    SEVERAL_SUBJECTS = "several_subjects"
    ONLY_LOCALIZERS = "only_localizers"
    MOSAIC = "mosaic"
    COLOUR = "colour"
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    UNREADABLE_PIXELS = "unreadable_pixels"
    IMPLAUSIBLE_HU = "implausible_hu"
    UNSUPPORTED_MODALITY = "unsupported_modality"
    NO_SIGNAL = "no_signal"
    TOO_LARGE = "too_large"
    WORKER_KILLED = "worker_killed"
    TIMED_OUT = "timed_out"
    READ_ERROR = "read_error"
    OUT_OF_MEMORY = "out_of_memory"
    NOT_A_NUMBER = "not_a_number"
    NO_MODEL = "no_model"
    INTERNAL_ERROR = "internal_error"


FAILURES = frozenset(
    {
        Reason.WORKER_KILLED,
        Reason.TIMED_OUT,
        Reason.READ_ERROR,
        Reason.OUT_OF_MEMORY,
        Reason.NOT_A_NUMBER,
        Reason.NO_MODEL,
        Reason.INTERNAL_ERROR,
    }
)
"""Reasons that speak of this run rather than of the data: status ``failed``, not ``rejected``."""


class SeriesRejectedError(AneurysmError):
    """One series can't become a volume. A row in the manifest, never a stopped run."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[SeriesRejectedError], tuple[Reason, str]]:
        # The default would call __init__ with the joined message, and fail in the parent of a worker.
        return (type(self), (self.reason, self.detail))


def words_of(error: BaseException) -> str:
    """Return what a table or a log may hold of an error: no name of a file, which may be a patient's."""
    if isinstance(error, AneurysmError):
        return str(error)
    words = error.strerror if isinstance(error, OSError) else str(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


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
