"""Batch -> ModelInput: integers into what a model takes, changed at random, on the device that the batch is on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aneurysm.errors import UsageError
from aneurysm.patches.augment_config import AugmentConfig
from aneurysm.patches.augment_draws import AugmentDraw, draw_augmentation
from aneurysm.patches.batch import Batch
from aneurysm.patches.intensity import (
    MrRange,
    WindowsHU,
    add_noise,
    change_tones,
    lower_resolution,
    model_units,
    picture_windows,
)
from aneurysm.patches.picture_geometry import PictureGeometry, picture_spacing
from aneurysm.patches.spatial import Geometry, controls_shape, mirrored_labels, mirrored_vessels
from aneurysm.patches.targets import MARGIN_MM, BatchLesions, patch_targets
from aneurysm.patches.views.view import Planes
from aneurysm.volume.intensity import to_physical


@dataclass(frozen=True)
class ModelInput:
    """
    B samples as a model takes them, in the order of the batch. What is not explained here is as in `Batch`.

    Attributes
    ----------
    image
        (B, C, Z, Y, X) float32 in model units, [0, 1].
    targets, ignore, unknown, certain
        (B, 14): of the patch as it is now.
    lesions
        Where they are in the patch as it is now.
    vessels
        (B, 1, Z, Y, X) uint8 or None: moved with the image.
    """

    image: Tensor
    vessels: Tensor | None
    has_vessels: Tensor
    targets: Tensor
    ignore: Tensor
    unknown: Tensor
    certain: Tensor
    lesions: BatchLesions
    spacing_mm: tuple[float, float, float]
    series_uid: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class StoredImages:
    """B patches or pictures as stored integers, and what these mean; see `aneurysm.patches.batch.Batch`."""

    image: Tensor
    fill: Tensor
    scale: Tensor
    offset: Tensor
    window: Tensor
    is_ct: Tensor
    spacing_mm: tuple[float, float, float]
    planes: Planes | None


@torch.no_grad()
def augment(
    batch: Batch,
    config: AugmentConfig,
    *,
    out_shape_zyx: tuple[int, int, int] | None = None,
    ct_windows_hu: WindowsHU = (),
    mr_range: MrRange = "series",
    margin_mm: float = MARGIN_MM,
) -> ModelInput:
    """
    Change a batch at random, and bring it into model units. The batch itself stays as it is.

    Pictures of a series move within their planes, each by what a draw does there, and are neither bent nor cut into
    thicker slices; see `aneurysm.patches.picture_geometry.PictureGeometry`.

    In this order: flips, rotation, scale, shear and bending, in one interpolation; blur, thick slices and noise, as of
    a scanner, on physical values; windows; gamma and inversion. Lesions, masks and targets go along. What happens to a
    sample follows from its seed alone, whatever else is in the batch; only the noise of voxels differs between kinds
    of device.

    Parameters
    ----------
    batch
        On any device.
    config
        Chances and strengths. `AugmentConfig.off` changes nothing: the image is then `Batch.normalised`.
    out_shape_zyx
        Shape of the patches that come out, cut from the middle; those in the batch may be larger, so that rotation
        brings in voxels rather than air. None: the same.
    ct_windows_hu
        Windows of CT, a channel for each; see `aneurysm.patches.intensity.model_units`.
    mr_range
        "picture": MR's model units are of each picture's own percentiles, and not of the series'.
    margin_mm
        See `aneurysm.patches.targets.patch_targets`.

    Raises
    ------
    UsageError
        ``out_shape_zyx`` is larger than the patches along some axis, or they are pictures, which are not cut.
    """
    device, shape_zyx = batch.image.device, (batch.image.shape[2], batch.image.shape[3], batch.image.shape[4])
    out_shape_zyx = out_shape_zyx or shape_zyx
    if any(out > n for out, n in zip(out_shape_zyx, shape_zyx, strict=True)):
        raise UsageError(f"patches of {out_shape_zyx} voxels can't be cut from the middle of {shape_zyx}")
    if batch.planes is not None and out_shape_zyx != shape_zyx:
        raise UsageError(f"pictures of {shape_zyx} can't be cut to {out_shape_zyx}: choose their size in the view")
    # Under autocast, matrix products would round voxels and coordinates to half precision.
    with torch.autocast(device.type, enabled=False):
        distance_mm = config.elastic.spacing_mm
        controls = controls_shape(out_shape_zyx, batch.spacing_mm, distance_mm)
        draws = [draw_augmentation(seed, config, controls) for seed in batch.seeds.tolist()]
        geometry = Geometry(draws, shape_zyx, out_shape_zyx, batch.spacing_mm, distance_mm, device)

        swapped = [draw.flips[2] and config.flip.labels == "swap" for draw in draws]
        mirrored = torch.tensor(swapped).to(device, non_blocking=True)
        other_side = mirrored_labels(device)
        lesions = batch.lesions
        if batch.planes is None:
            lesions = BatchLesions(
                sample=lesions.sample,
                site=torch.where(mirrored[lesions.sample], other_side[lesions.site], lesions.site),
                zyx=geometry.points(lesions.sample, lesions.zyx),
                inner=geometry.points(lesions.sample, lesions.inner),
            )
        unknown, certain = (
            torch.where(mirrored[:, None], labels[:, other_side], labels) for labels in (batch.unknown, batch.certain)
        )
        targets, ignore = patch_targets(lesions, unknown, certain, out_shape_zyx, batch.spacing_mm, margin_mm=margin_mm)
        return ModelInput(
            image=_image(batch, geometry, draws, ct_windows_hu, mr_range),
            vessels=None if batch.vessels is None else _vessels(batch.vessels, geometry, swapped),
            has_vessels=batch.has_vessels,
            targets=targets,
            ignore=ignore,
            unknown=unknown,
            certain=certain,
            lesions=lesions,
            spacing_mm=batch.spacing_mm,
            series_uid=batch.series_uid,
        )


@torch.no_grad()
def augment_images(
    images: StoredImages,
    seed: int,
    config: AugmentConfig,
    *,
    ct_windows_hu: WindowsHU = (),
    mr_range: MrRange = "series",
) -> tuple[Tensor, bool]:
    """
    Change all images by one draw, that of ``seed``, as `augment` does; of their labels nothing is known.

    Returns
    -------
    image
        (B, C, Z, Y, X) float32 in model units.
    swapped
        Whether labels of left and right have traded places, and so a model's answers have to.
    """
    shape_zyx, device = (images.image.shape[2], images.image.shape[3], images.image.shape[4]), images.image.device
    with torch.autocast(device.type, enabled=False):
        distance_mm = config.elastic.spacing_mm
        controls = controls_shape(shape_zyx, images.spacing_mm, distance_mm)
        draws = [draw_augmentation(seed, config, controls)] * len(images.image)
        geometry = Geometry(draws, shape_zyx, shape_zyx, images.spacing_mm, distance_mm, device)
        swapped = draws[0].flips[2] and config.flip.labels == "swap"
        return _image(images, geometry, draws, ct_windows_hu, mr_range), swapped


def _image(
    batch: Batch | StoredImages,
    geometry: Geometry,
    draws: list[AugmentDraw],
    ct_windows_hu: WindowsHU,
    mr_range: MrRange,
) -> Tensor:
    if batch.planes is None:
        stored = geometry.image(batch.image, batch.fill)
    else:
        stored = PictureGeometry(draws, batch.planes, batch.spacing_mm).image(batch.image, batch.fill)
        draws = [replace(draw, slice_mm=0.0) for draw in draws]
    scale, offset = (values[:, None, None, None, None] for values in (batch.scale, batch.offset))
    physical = to_physical(stored, scale, offset)
    spacing_mm = batch.spacing_mm if batch.planes is None else picture_spacing(batch.planes, batch.spacing_mm)
    physical = lower_resolution(physical, draws, spacing_mm)
    physical = add_noise(physical, batch.window, batch.is_ct, draws)
    window = picture_windows(physical, batch.window, batch.is_ct) if mr_range == "picture" else batch.window
    image = model_units(physical, window, batch.is_ct, ct_windows_hu, draws)
    return change_tones(image, batch.is_ct, draws)


def _vessels(vessels: Tensor, geometry: Geometry, swapped: list[bool]) -> Tensor:
    moved = geometry.mask(vessels)
    mirrored = [row for row, swap in enumerate(swapped) if swap]
    if mirrored:
        rows = torch.tensor(mirrored).to(moved.device, non_blocking=True)
        moved[rows] = mirrored_vessels(moved[rows])
    return moved
