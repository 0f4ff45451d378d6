"""Overlays: a folder of lesion maps as NIfTI, for each series on the cache's grid and on the series' own."""

from __future__ import annotations

from pathlib import Path

from aneurysm.dicom.scan import safe_source
from aneurysm.errors import UsageError
from aneurysm.inference.lesion_map import LesionMap, source_affine, source_planes, source_shape
from aneurysm.inference.nifti import write_nifti


class Overlays:
    """
    Writes ``<series_uid>-cached.nii.gz``, and ``<series_uid>-source.nii.gz`` of a series that came as DICOM.

    Raises
    ------
    UsageError
        The folder can't be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"can't make the folder {folder} for overlays: {error.strerror or error}") from error

    def has(self, series_uid: str) -> bool:
        """Say whether the map of a series is there; it is written last on the cache's grid."""
        return self._path(series_uid, "cached").is_file()

    def write(self, series_uid: str, lesions: LesionMap) -> None:
        """
        Write the map of one series.

        Raises
        ------
        NoSpaceError
            The disk is full.
        """
        stack = lesions.stack
        if stack is not None:
            write_nifti(
                self._path(series_uid, "source"), source_planes(lesions), source_shape(stack), source_affine(stack)
            )
        z, y, x = lesions.values.shape
        # NIfTI counts x first.
        write_nifti(self._path(series_uid, "cached"), lesions.values, (x, y, z), lesions.affine_lps[:, [2, 1, 0, 3]])

    def _path(self, series_uid: str, grid: str) -> Path:
        # A UID comes out of a file: ../x must not become a path.
        return self.folder / f"{safe_source(series_uid).uid}-{grid}.nii.gz"
