"""Batch -> ModelInput: integers into what a model takes, changed at random, on the device that the batch is on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aneurysm.errors import UsageError
from aneurysm.patches.augment_config import AugmentConfig
from aneurysm.patches.augment_draws import AugmentDraw, draw_augmentation
from aneurysm.patches.batch import Batch
from aneurysm.patches.intensity import WindowsHU, add_noise, change_tones, lower_resolution, model_units
from aneurysm.patches.spatial import Geometry, controls_shape, mirrored_labels, mirrored_vessels
from aneurysm.patches.targets import MARGIN_MM, BatchLesions, patch_targets
from aneurysm.volume.intensity import to_physical


@dataclass(frozen=True)
class ModelInput:
    """
    B patches as a model takes them, in the order of the batch. What is not explained here is as in `Batch`.

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


@torch.no_grad()
def augment(
    batch: Batch,
    config: AugmentConfig,
    *,
    out_shape_zyx: tuple[int, int, int] | None = None,
    ct_windows_hu: WindowsHU = (),
    margin_mm: float = MARGIN_MM,
) -> ModelInput:
    """
    Change a batch at random, and bring it into model units. The batch itself stays as it is.

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
    margin_mm
        See `aneurysm.patches.targets.patch_targets`.

    Raises
    ------
    UsageError
        ``out_shape_zyx`` is larger than the patches along some axis.
    """
    device, shape_zyx = batch.image.device, (batch.image.shape[2], batch.image.shape[3], batch.image.shape[4])
    out_shape_zyx = out_shape_zyx or shape_zyx
    if any(out > n for out, n in zip(out_shape_zyx, shape_zyx, strict=True)):
        raise UsageError(f"patches of {out_shape_zyx} voxels can't be cut from the middle of {shape_zyx}")
    # Under autocast, matrix products would round voxels and coordinates to half precision.
    with torch.autocast(device.type, enabled=False):
        distance_mm = config.elastic.spacing_mm
        controls = controls_shape(out_shape_zyx, batch.spacing_mm, distance_mm)
        draws = [draw_augmentation(seed, config, controls) for seed in batch.seeds.tolist()]
        geometry = Geometry(draws, shape_zyx, out_shape_zyx, batch.spacing_mm, distance_mm, device)

        mirrored = torch.tensor([draw.flips[2] for draw in draws]).to(device, non_blocking=True)
        other_side = mirrored_labels(device)
        lesions = batch.lesions
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
            image=_image(batch, geometry, draws, ct_windows_hu),
            vessels=None if batch.vessels is None else _vessels(batch.vessels, geometry, draws),
            has_vessels=batch.has_vessels,
            targets=targets,
            ignore=ignore,
            unknown=unknown,
            certain=certain,
            lesions=lesions,
            spacing_mm=batch.spacing_mm,
            series_uid=batch.series_uid,
        )


def _image(batch: Batch, geometry: Geometry, draws: list[AugmentDraw], ct_windows_hu: WindowsHU) -> Tensor:
    stored = geometry.image(batch.image, batch.fill)
    scale, offset = (values[:, None, None, None, None] for values in (batch.scale, batch.offset))
    physical = to_physical(stored, scale, offset)
    physical = lower_resolution(physical, draws, batch.spacing_mm)
    physical = add_noise(physical, batch.window, batch.is_ct, draws)
    image = model_units(physical, batch.window, batch.is_ct, ct_windows_hu, draws)
    return change_tones(image, batch.is_ct, draws)


def _vessels(vessels: Tensor, geometry: Geometry, draws: list[AugmentDraw]) -> Tensor:
    moved = geometry.mask(vessels)
    mirrored = [row for row, draw in enumerate(draws) if draw.flips[2]]
    if mirrored:
        rows = torch.tensor(mirrored).to(moved.device, non_blocking=True)
        moved[rows] = mirrored_vessels(moved[rows])
    return moved
