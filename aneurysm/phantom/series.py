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
from aneurysm.phantom.masks import is_regular, touch_up, write_nifti
from aneurysm.phantom.plan import SeriesPlan
from aneurysm.phantom.render import Renderer
from aneurysm.phantom.scanner import Stack, regular_grid
from aneurysm.phantom.scene import draw_scene
from aneurysm.phantom.shapes import Array
from aneurysm.phantom.shots import Shot, list_shots
from aneurysm.phantom.storage import Storage, draw_storage, slice_slope
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
    storage = draw_storage(plan)
    writer = SeriesWriter(plan, storage, folder, stack.thickness_mm, acquisition.spacing_tag_mm)
    lesions, rows = mark_lesions(plan, scene, acquisition, shots)
    masked = plan.has("mask", "nested_mask", "regridded_mask")
    if plan.has("no_images"):
        writer.write_strays()
    elif not plan.has("no_files"):
        renderer = Renderer(scene, stack, streams("head"))
        noise = _Noise(plan)
        volume = _write_images(plan, renderer, noise, stack, shots, storage, writer, keep=masked)
        if masked:
            grid, image, labels = _mask_volume(plan, renderer, noise, stack, volume)
            touch_up(labels, grid, lesions)
            _write_masks(plan, root, grid, image, labels)
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
        gap_mm=acquisition.told.gap_mm,
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


def _write_images(
    plan: SeriesPlan,
    renderer: Renderer,
    noise: _Noise,
    stack: Stack,
    shots: list[Shot],
    storage: Storage,
    writer: SeriesWriter,
    *,
    keep: bool,
) -> _Volume | None:
    """Render slice by slice and write each image at once; return image and labels of all slices if ``keep``."""
    of_slice: dict[int, list[int]] = {}
    for n, shot in enumerate(shots):
        if shot.slice is not None:
            of_slice.setdefault(shot.slice, []).append(n)
    frames: npt.NDArray[Any] | None = None
    if plan.multiframe:
        frames = np.empty((len(shots), *stack.shape), np.int16 if storage.signed else np.uint16)
    kept: _Volume | None = None
    if keep:
        kept = np.empty((len(stack), *stack.shape), np.int16), np.empty((len(stack), *stack.shape), np.uint8)
    for k, image, labels in renderer.slices(stack):
        slope = slice_slope(plan, storage, k)
        noisy = noise.add(image, k)
        if plan.has("no_signal"):
            noisy[:] = 0
        if kept is not None:
            kept[0][k], kept[1][k] = _rounded(noisy, storage), labels
        for n in of_slice.get(k, []):
            shot = shots[n]
            # The second echo, phase or time point has another contrast and noise of its own.
            shown = noise.add(image * np.float32(0.7), k, shot.volume) if shot.volume else noisy
            stored = storage.store(shown[: shot.shape[0], : shot.shape[1]], slope)
            if frames is not None:
                frames[n] = stored
            else:
                writer.write(shot, _rgb(shown) if shot.rgb else stored, slope)
    if frames is not None:
        slopes = [slice_slope(plan, storage, s.slice or 0) for s in shots]
        writer.write_frames(shots, frames, slopes)
    for shot in shots:
        if shot.slice is None:
            extra = _other_image(plan, shot)
            writer.write(shot, _rgb(extra) if shot.rgb else storage.store(extra, storage.slope), storage.slope)
    if plan.has("stray_files"):
        writer.write_strays()
        if not plan.has("test_tags"):
            foreign = next(s for s in shots if s.slice is not None)
            writer.write_foreign(foreign, storage.store(_other_image(plan, foreign), storage.slope))
    return kept


def _other_image(plan: SeriesPlan, shot: Shot) -> Array:
    """A crude projection of a head, for scouts and the like."""
    rows, columns = shot.shape
    y = (np.arange(rows, dtype=np.float32)[:, None] - rows / 2) / (0.42 * rows)
    x = (np.arange(columns, dtype=np.float32) - columns / 2) / (0.33 * columns)
    bright = 300.0 if plan.modality == "CTA" else 0.6
    dark = -1000.0 if plan.modality == "CTA" else 0.0
    thick = np.sqrt(np.maximum(1 - x * x - y * y, 0))
    image: Array = (dark + (bright - dark) * thick).astype(np.float32)
    return image


def _rgb(image: Array) -> npt.NDArray[np.uint8]:
    """A screen shot: three equal channels of 8 bits."""
    low, high = float(image.min()), float(image.max())
    grey = ((image - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _rounded(image: Array, storage: Storage) -> npt.NDArray[np.int16]:
    return np.clip(np.rint(image * np.float32(storage.gain)), -2000, 32767).astype(np.int16)


def _mask_volume(
    plan: SeriesPlan, renderer: Renderer, noise: _Noise, stack: Stack, volume: _Volume | None
) -> tuple[Stack, npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Image and labels on the series' own grid, or on an even one of another shape where that is asked or needed."""
    if volume is not None and is_regular(stack) and not plan.has("regridded_mask"):
        return stack, *volume
    grid = regular_grid(stack, 0.9 * min(stack.gap_mm, max(stack.spacing_mm)))
    storage = draw_storage(plan)
    image = np.empty((len(grid), *grid.shape), np.int16)
    labels = np.empty(image.shape, np.uint8)
    for k, values, label in renderer.slices(grid):
        image[k], labels[k] = _rounded(noise.add(values, k, 2), storage), label
    return grid, image, labels


def _write_masks(
    plan: SeriesPlan, root: Path, grid: Stack, image: npt.NDArray[np.int16], labels: npt.NDArray[np.uint8]
) -> None:
    folder = root / "segmentations"
    if plan.has("nested_mask"):
        folder = folder / plan.uid
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in ((f"{plan.uid}.nii", image), (f"{plan.uid}_cowseg.nii", labels)):
        # The same flips for both: the image is what the mask was drawn on.
        write_nifti(folder / name, values, grid, plan.streams("mask order"))
