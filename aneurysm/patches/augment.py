"""Batch -> ModelInput: integers into what a model takes, changed at random, on the device that the batch is on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aneurysm.errors import UsageError
from aneurysm.patches.augment_config import AugmentConfig
from aneurysm.patches.augment_draws import AugmentDraw, draw_augmentation
from aneurysm.patches.batch import Batch
from aneurysm.patches.elastic import controls_shape
from aneurysm.patches.geometry import Geometry
from aneurysm.patches.intensity import WindowsHU, add_noise, change_tones, model_units
from aneurysm.patches.mirror import mirrored_labels, mirrored_vessels
from aneurysm.patches.resolution import lower_resolution
from aneurysm.patches.targets import MARGIN_MM, patch_targets


@dataclass(frozen=True)
class ModelInput:
    """
    B patches as a model takes them. What is not explained here is as in `Batch`.

    Attributes
    ----------
    image
        (B, C, Z, Y, X) float32 in model units, [0, 1].
    targets, ignore, unknown, certain
        (B, 14): of the patch as it is now.
    lesion_zyx
        (L, 3) float32: voxel coordinates in the patch as it is now; some lie outside.
    vessels
        (B, 1, Z, Y, X) uint8 or None: moved with the image.
    """

    image: Tensor
    is_ct: Tensor
    vessels: Tensor | None
    has_vessels: Tensor
    targets: Tensor
    ignore: Tensor
    unknown: Tensor
    certain: Tensor
    lesion_sample: Tensor
    lesion_site: Tensor
    lesion_zyx: Tensor
    spacing_mm: tuple[float, float, float]
    index: Tensor
    volume: Tensor
    series_uid: tuple[str, ...]
    why: tuple[str, ...]

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

        lesion_zyx = geometry.points(batch.lesion_sample, batch.lesion_zyx)
        mirrored = torch.tensor([draw_augmentation.flips[2] for draw_augmentation in draws]).to(
            device, non_blocking=True
        )
        labels = mirrored_labels(device)
        lesion_site = torch.where(mirrored[batch.lesion_sample], labels[batch.lesion_site], batch.lesion_site)
        unknown, certain = (
            torch.where(mirrored[:, None], given[:, labels], given) for given in (batch.unknown, batch.certain)
        )
        targets, ignore = patch_targets(
            batch.lesion_sample,
            lesion_site,
            lesion_zyx,
            geometry.points(batch.lesion_sample, batch.lesion_inner),
            len(batch),
            out_shape_zyx,
            margin_mm,
            batch.spacing_mm,
            unknown,
            certain,
        )
        return ModelInput(
            image=_image(batch, geometry, draws, ct_windows_hu),
            is_ct=batch.is_ct,
            vessels=None if batch.vessels is None else _vessels(batch.vessels, geometry, draws),
            has_vessels=batch.has_vessels,
            targets=targets,
            ignore=ignore,
            unknown=unknown,
            certain=certain,
            lesion_sample=batch.lesion_sample,
            lesion_site=lesion_site,
            lesion_zyx=lesion_zyx,
            spacing_mm=batch.spacing_mm,
            index=batch.index,
            volume=batch.volume,
            series_uid=batch.series_uid,
            why=batch.why,
        )


def _image(batch: Batch, geometry: Geometry, draws: list[AugmentDraw], ct_windows_hu: WindowsHU) -> Tensor:
    stored = geometry.image(batch.image, batch.fill)
    physical = stored.mul_(batch.scale[:, None, None, None, None]).add_(batch.offset[:, None, None, None, None])
    physical = lower_resolution(physical, draws, batch.spacing_mm)
    physical = add_noise(physical, batch.window, batch.is_ct, draws)
    image = model_units(physical, batch.window, batch.is_ct, ct_windows_hu, draws)
    return change_tones(image, batch.is_ct, draws)


def _vessels(vessels: Tensor, geometry: Geometry, draws: list[AugmentDraw]) -> Tensor:
    moved = geometry.mask(vessels)
    mirrored = [row for row, draw_augmentation in enumerate(draws) if draw_augmentation.flips[2]]
    if mirrored:
        rows = torch.tensor(mirrored).to(moved.device, non_blocking=True)
        moved[rows] = mirrored_vessels(moved[rows])
    return moved
