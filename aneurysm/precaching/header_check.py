"""Headers of a series -> the stack and grid of the volume that it would become, or why there would be none.

It is what `aneurysm.volume.volume.assemble` decides before it decodes a pixel, by the same functions. Where geometry
and tags leave a doubt, pixels are asked there; here frames at one place are taken for copies of each other, and
none for a picture of something else than its neighbours.
"""

from __future__ import annotations

from aneurysm.dicom.content import HeadersOnly
from aneurysm.dicom.series import Series
from aneurysm.dicom.stack import Stack, stack_frames
from aneurysm.errors import Reason, SeriesRejectedError
from aneurysm.rawdata.folder import SeriesSource
from aneurysm.spec import CacheSpec
from aneurysm.volume.grid import TargetGrid, target_grid
from aneurysm.volume.modality import dicom_modality
from aneurysm.volume.volume import allowed_losses


def check_source(source: SeriesSource) -> None:
    """Raise `SeriesRejectedError` if the UID of a series can't be used, or a file that may be one of it is lost."""
    if source.problem:
        raise SeriesRejectedError(Reason.INVALID_UID, source.problem)
    source.check_complete()


def read_source_headers(source: SeriesSource) -> Series:
    """
    Read the headers of a series, of which no more than these is downloaded if it is in an object store.

    Raises
    ------
    SeriesRejectedError
        It can't become a volume, whatever its geometry is.
    OSError, StoreError
        The files can't be read.
    """
    check_source(source)
    with source.local_copy(headers_only=True) as local:
        return local.read_headers()


def planned_volume(series: Series, spec: CacheSpec) -> tuple[Stack, TargetGrid]:
    """
    Return the frames, in order, and the grid of the volume that ``series`` becomes if its pixels are as they should be.

    Raises
    ------
    SeriesRejectedError
        It becomes none, with the reason that a run would record.
    """
    dicom_modality(series)
    stack = stack_frames(series.frames, spec.slices, HeadersOnly())
    allowed_losses(series, stack, spec.slices)
    return stack, target_grid(stack, spec)
