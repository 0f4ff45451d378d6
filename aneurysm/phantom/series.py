"""SeriesPlan -> the files of one series, its vessel mask, and the truth about it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aneurysm.phantom.acquisition import acquire
from aneurysm.phantom.contrast import ct_noise, noise_level, rician
from aneurysm.phantom.dicom_writer import SeriesWriter
from aneurysm.phantom.marks import LocalizerRow, mark_lesions
from aneurysm.phantom.masks import is_regular, touch_up, write_mask
from aneurysm.phantom.plan import SeriesPlan
from aneurysm.phantom.render import Renderer
from aneurysm.phantom.scanner import SliceStack, regular_grid
from aneurysm.phantom.scene import draw_scene
from aneurysm.phantom.shapes import Array
from aneurysm.phantom.shots import Shot, list_shots
from aneurysm.phantom.storage import PixelStorage, draw_storage, slice_slope
from aneurysm.phantom.truth import SeriesTruth


@dataclass(frozen=True)
class WrittenSeries:
    """The truth about a series and its rows of train_localizers.csv."""

    truth: SeriesTruth
    localizers: list[LocalizerRow]


def write_series(plan: SeriesPlan, root: Path) -> WrittenSeries:
    """
    Write ``series/<uid>/`` and, where the plan has a mask, ``segmentations/`` under ``root``.

    Everything depends on the plan only. What was there of this series before is replaced.
    """
    streams = plan.streams
    scene = draw_scene(plan.modality, plan.sites, streams, plan.difficulty)
    centers = scene.pose.to_lps(np.array([lesion.center for lesion in scene.lesions]).reshape(-1, 3))
    acquisition = acquire(plan, scene.pose, centers)
    stack = acquisition.true
    marked = [stack.locate(c)[0] for c in centers]
    shots = list_shots(plan, stack, marked)
    folder = root / "series" / plan.uid
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writer = SeriesWriter(plan, draw_storage(plan), folder, stack.thickness_mm, acquisition.spacing_tag_mm)
    lesions, rows = mark_lesions(plan, scene, acquisition, shots)
    masked = plan.has("mask", "nested_mask", "regridded_mask")
    if plan.has("no_images"):
        writer.write_strays()
    elif not plan.has("no_files"):
        renderer = Renderer(scene, stack, streams("head"))
        photographer = _Photographer(plan, stack, shots, writer)
        volume = photographer.shoot(renderer, keep=masked)
        if volume is not None:
            grid, volume = photographer.masked(renderer, volume)
            touch_up(volume[1], grid, lesions)
            _write_masks(plan, root, grid, volume)
    truth = SeriesTruth(
        uid=plan.uid,
        index=plan.index,
        modality=plan.modality,
        size=plan.size,
        quirks=plan.quirks,
        rejected=plan.rejected,
        plane=plan.plane,
        slices=len(stack),
        rows=stack.shape[0],
        columns=stack.shape[1],
        gap_mm=acquisition.assumed.gap_mm,
        patient_space=acquisition.patient_space,
        mask=masked,
        origin_lps=tuple(float(v) for v in scene.pose.origin_lps),  # type: ignore[arg-type]
        left_lps=tuple(float(v) for v in scene.pose.left),  # type: ignore[arg-type]
        features=tuple(scene.tree.features),
        lesions=tuple(lesions),
    )
    return WrittenSeries(truth, rows)


class _Noise:
    """Adds the scanner's noise; the same slice of the same volume always gets the same."""

    def __init__(self, plan: SeriesPlan) -> None:
        self._plan = plan
        self._level = noise_level(plan.modality, plan.size, plan.streams("noise level"), plan.difficulty)

    def add(self, image: Array, k: int, volume: int = 0) -> Array:
        rng = self._plan.streams(f"noise {volume}" if volume else "noise", k)
        if self._plan.modality != "CTA":
            return rician(image, self._level, rng)
        noise = ct_noise((image.shape[0], image.shape[1]), self._level, rng)
        noise += image
        return noise


_Volume = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]


class _Photographer:
    """Renders slice by slice and writes each image at once, so that memory is bounded by a few slices."""

    def __init__(self, plan: SeriesPlan, stack: SliceStack, shots: list[Shot], writer: SeriesWriter) -> None:
        self._plan = plan
        self._stack = stack
        self._shots = shots
        self._writer = writer
        self._storage = draw_storage(plan)
        self._noise = _Noise(plan)
        self._frames: npt.NDArray[Any] | None = None
        if plan.multiframe:
            dtype = np.int16 if self._storage.signed else np.uint16
            self._frames = np.empty((len(shots), *stack.shape), dtype)

    def shoot(self, renderer: Renderer, *, keep: bool) -> _Volume | None:
        """Write every file of the series; return image and labels of all slices if ``keep``."""
        of_slice: dict[int, list[int]] = {}
        for n, shot in enumerate(self._shots):
            if shot.slice is not None:
                of_slice.setdefault(shot.slice, []).append(n)
        kept: _Volume | None = None
        if keep:
            shape = (len(self._stack), *self._stack.shape)
            kept = np.empty(shape, np.int16), np.empty(shape, np.uint8)
        for k, image, labels in renderer.slices(self._stack):
            noisy = self._noise.add(image, k)
            if self._plan.has("no_signal"):
                noisy[:] = 0
            if kept is not None:
                kept[0][k], kept[1][k] = _rounded(noisy, self._storage), labels
            for n in of_slice.get(k, []):
                # The second echo, phase or time point has another contrast and noise of its own.
                volume = self._shots[n].volume
                self._take(n, self._noise.add(image * np.float32(0.7), k, volume) if volume else noisy)
        if self._frames is not None:
            slopes = [slice_slope(self._plan, self._storage, s.slice or 0) for s in self._shots]
            self._writer.write_frames(self._shots, self._frames, slopes)
        self._add_others()
        return kept

    def _take(self, n: int, image: Array) -> None:
        shot, storage = self._shots[n], self._storage
        slope = slice_slope(self._plan, storage, shot.slice or 0)
        part = image[: shot.shape[0], : shot.shape[1]]
        if self._frames is not None:
            self._frames[n] = storage.store(part, slope)
        else:
            self._writer.write(shot, _rgb(part) if shot.rgb else storage.store(part, slope), slope)

    def _add_others(self) -> None:
        """Write what is not of the stack: scouts, screen shots, stray files."""
        storage = self._storage
        for shot in self._shots:
            if shot.slice is None:
                extra = _other_image(self._plan, shot)
                self._writer.write(
                    shot, _rgb(extra) if shot.rgb else storage.store(extra, storage.slope), storage.slope
                )
        if self._plan.has("stray_files"):
            self._writer.write_strays()
            # Stripped of SeriesInstanceUID, nothing would tell a foreign image from the series' own.
            if not self._plan.has("test_tags", "no_preamble"):
                foreign = next(s for s in self._shots if s.slice is not None)
                self._writer.write_foreign(foreign, storage.store(_other_image(self._plan, foreign), storage.slope))

    def masked(self, renderer: Renderer, volume: _Volume) -> tuple[SliceStack, _Volume]:
        """Return image and labels on the series' own grid, or on an even one where that is asked or needed."""
        if is_regular(self._stack) and not self._plan.has("regridded_mask"):
            return self._stack, volume
        grid = regular_grid(self._stack, 0.9 * min(self._stack.gap_mm, max(self._stack.spacing_mm)))
        image = np.empty((len(grid), *grid.shape), np.int16)
        labels = np.empty(image.shape, np.uint8)
        for k, values, label in renderer.slices(grid):
            image[k], labels[k] = _rounded(self._noise.add(values, k, 2), self._storage), label
        return grid, (image, labels)


def _other_image(plan: SeriesPlan, shot: Shot) -> Array:
    """Return a crude projection of a head, for scouts and the like."""
    rows, columns = shot.shape
    y = (np.arange(rows, dtype=np.float32)[:, None] - rows / 2) / (0.42 * rows)
    x = (np.arange(columns, dtype=np.float32) - columns / 2) / (0.33 * columns)
    bright = 300.0 if plan.modality == "CTA" else 0.6
    dark = -1000.0 if plan.modality == "CTA" else 0.0
    thick = np.sqrt(np.maximum(1 - x * x - y * y, 0))
    image: Array = (dark + (bright - dark) * thick).astype(np.float32)
    return image


def _rgb(image: Array) -> npt.NDArray[np.uint8]:
    """Return a screen shot: three equal channels of 8 bits."""
    low, high = float(image.min()), float(image.max())
    grey = ((image - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _rounded(image: Array, storage: PixelStorage) -> npt.NDArray[np.int16]:
    return np.asarray(np.clip(np.rint(image * np.float32(storage.gain)), -2000, 32767), dtype=np.int16)


def _write_masks(plan: SeriesPlan, root: Path, grid: SliceStack, volume: _Volume) -> None:
    folder = root / "segmentations"
    if plan.has("nested_mask"):
        folder = folder / plan.uid
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in ((f"{plan.uid}.nii", volume[0]), (f"{plan.uid}_cowseg.nii", volume[1])):
        # The same flips for both: the image is what the mask was drawn on.
        write_mask(folder / name, values, grid, plan.streams("mask order"))
