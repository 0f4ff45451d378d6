"""Voxels, attributes -> a published volume: where its head and vessels lie is added, and it is renamed into place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.writer import write_volume
from aneurysm.precache.publish import publish
from aneurysm.processes.files import tree_bytes
from aneurysm.spec import CacheSpec
from aneurysm.volume.head_and_vessels import survey
from aneurysm.volume.intensity import Intensity


def store_volume(
    layout: CacheLayout,
    folder: Path,
    spec: CacheSpec,
    attributes: dict[str, Any],
    voxels: NDArray[Any],
    affine_lps: NDArray[np.float64],
    intensity: Intensity,
    vessels: NDArray[np.uint8] | None,
    vessels_from: str,
    *,
    overwrite: bool,
) -> int:
    """
    Build a volume in ``folder``, which the claim on it gave, and publish it; return its bytes on disk.

    Parameters
    ----------
    attributes
        All but ``blocks``, ``intensity``, and what `write_volume` adds; see docs/cache.md.
    voxels, affine_lps, intensity
        Stored integers (z, y, x) on the grid of ``spec``, where they lie, and what they mean.
    vessels, vessels_from
        The vessel mask on the same grid, or None; and the hash of what it was made of, empty if there is no mask.
    overwrite
        Replace the volume that is there.
    """
    uid = attributes["series_uid"]
    blocks = survey(voxels, intensity, spec.spacing_mm)
    attributes |= {"intensity": intensity.as_metadata(), "blocks": blocks.as_metadata()}
    built = folder / f"{uid}.zarr"
    write_volume(built, voxels, affine_lps, spec.storage, intensity.fill, attributes, vessels, vessels_from)
    bytes_out = tree_bytes(built)
    publish(built, layout.volume(uid), folder if overwrite else None)
    return bytes_out
