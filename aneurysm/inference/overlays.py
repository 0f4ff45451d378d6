"""Overlays: a folder of lesion maps as NIfTI, for each series on the cache's grid and on the series' own."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.inference.lesion_map import LesionMap, source_affine, source_planes, source_shape
from aneurysm.inference.nifti import write_nifti
from aneurysm.processes.files import sweep_temporaries
from aneurysm.rawdata.folder import safe_source


class Overlays:
    """
    Writes ``<series_uid>-<label>-cached.nii.gz``, and ``-source.nii.gz`` of a series that came as DICOM.

    One whose slices are of several parts has a ``-source-2.nii.gz`` and so on for those beside the largest.

    Parameters
    ----------
    folder
        Is made if need be.
    label
        Of the maps, one of `aneurysm.labels.LABELS`.
    cam
        They are made by Grad-CAM, and no probabilities: their names say ``<label>-cam``.

    Raises
    ------
    UsageError
        The folder can't be made, or nothing written there.
    """

    def __init__(self, folder: Path, label: str, *, cam: bool = False) -> None:
        self.folder = folder
        self._what = label.lower().replace(" ", "-") + ("-cam" if cam else "")
        self._says = f"{'Grad-CAM' if cam else 'probability'} of {label}; not for clinical use"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"can't make the folder {folder} for overlays: {error.strerror or error}") from error
        try:
            TemporaryFile(dir=folder).close()
            sweep_temporaries(folder, "*.nii.gz")
        except OSError as error:
            raise self._unwritable(error) from error

    def has(self, series_uid: str) -> bool:
        """Return True if the map of a series is there; it is written last on the cache's grid."""
        return self._path(series_uid, "cached").is_file()

    def write(self, series_uid: str, lesions: LesionMap) -> None:
        """
        Write the map of one series.

        Raises
        ------
        NoSpaceError
            The disk is full.
        UsageError
            They can't be written for another reason.
        """
        z, y, x = lesions.values.shape
        try:
            for number, part in enumerate(lesions.stack.parts if lesions.stack else (), 1):
                path = self._path(series_uid, "source" if number == 1 else f"source-{number}")
                write_nifti(path, source_planes(lesions, part), source_shape(part), source_affine(part), self._says)
            # NIfTI counts x first.
            affine = lesions.affine_lps[:, [2, 1, 0, 3]]
            write_nifti(self._path(series_uid, "cached"), lesions.values, (x, y, z), affine, self._says)
        except NoSpaceError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(f"overlays can't be written in {self.folder}: {error.strerror or error}")

    def _path(self, series_uid: str, grid: str) -> Path:
        # A UID comes out of a file: ../x must not become a path.
        return self.folder / f"{safe_source(series_uid).uid}-{self._what}-{grid}.nii.gz"
