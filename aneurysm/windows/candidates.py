"""Maps of logits, or logits of windows -> Candidates: where a model sees an aneurysm.

A map is searched window by window, each in the part of the volume where it is the most central one; it is never put
together, which would take gigabytes on a fine grid. What two windows see becomes one candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool3d

from aneurysm.labels import SITES
from aneurysm.probability import sigmoid

RADIUS_MM: Final = 5.0
"""Of two peaks of one site that are nearer than this, the lower is no candidate of its own."""
_MOST_PER_WINDOW: Final = 1024
"""A window's highest peaks. A noisy map has dozens within `RADIUS_MM` of its highest one. `best_candidates` drops them:
here it can't be seen which peaks the other windows have."""


@dataclass(frozen=True)
class Candidate:
    """
    A place where there may be an aneurysm.

    Attributes
    ----------
    site
        Index into `aneurysm.labels.SITES`.
    probability
        From 0 to 1.
    zyx
        Voxel coordinates in the volume, whole numbers being voxel centres.
    lps_mm
        (x, y, z) in patient space.
    """

    site: int
    probability: float
    zyx: tuple[float, float, float]
    lps_mm: tuple[float, float, float]


def map_peaks(
    dense: Tensor,
    stride_zyx: tuple[int, int, int],
    part: NDArray[np.float64],
) -> Tensor:
    """
    Return the highest local maxima of one window's map, however close to each other they are.

    Parameters
    ----------
    dense, stride_zyx
        (14, z, y, x) logits, and voxels per cell; see `aneurysm.models.output.ModelOutput`.
    part
        (2, 3): the first and last (z, y, x) of the part to be searched, in voxels of the window.

    Returns
    -------
    Tensor
        (n, 5) float32 on the map's device: site, logit, and (z, y, x) in voxels of the window, found to a fraction of
        a cell by a parabola along each axis. A logit of -inf marks a row that stands for nothing.
    """
    sizes = dense.shape[1:]
    firsts, with_rim, without_rim, block = [], [], [], []
    for size, stride, low, high in zip(sizes, stride_zyx, *part, strict=True):
        # All cells that reach into the part. By their centres alone, a cell at the seam might be of neither window.
        first, last = int(np.ceil((low + 0.5) / stride)) - 1, int(np.floor((high + 0.5) / stride))
        first = min(max(first, 0), size - 1)
        last = min(max(last, first), size - 1)
        rim = max(first - 1, 0)
        firsts.append(first)
        with_rim.append(slice(rim, last + 2))
        without_rim.append(slice(first - rim, last + 1 - rim))
        block.append(min(2, last + 1 - first))
    searched = dense[(slice(len(SITES)), *with_rim)].float()
    inside = (slice(None), *without_rim)
    # A peak is no lower than any of its 26 neighbours, those beyond the part included.
    around = max_pool3d(searched[None], 3, stride=1, padding=1)[0][inside]
    searched = searched[inside]
    peaks = torch.where(searched >= around, searched, -torch.inf)
    # The 8 cells of a block are neighbours: of peaks in one block all but one can go, for they are equal. Wider blocks
    # would hold peaks that are candidates by themselves.
    logit, flat = max_pool3d(peaks[None], block, stride=block, ceil_mode=True, return_indices=True)
    logit, flat = logit[0].flatten(1), flat[0].flatten(1)
    rows, columns = searched.shape[2:]
    within = torch.stack([flat // (rows * columns), flat // columns % rows, flat % columns], -1)
    cell = within + torch.tensor(firsts, device=dense.device)
    site = torch.arange(len(SITES), device=dense.device)[:, None].expand_as(flat)
    peak, chosen = logit.flatten().topk(min(_MOST_PER_WINDOW, logit.numel()))
    site, cell = site.flatten()[chosen], cell.flatten(0, 1)[chosen]
    stride = torch.tensor(stride_zyx, device=dense.device)
    zyx = (cell + _summit(_around(dense, site, cell), cell, sizes)) * stride + (stride - 1).float() / 2
    return torch.cat([site[:, None].float(), peak[:, None], zyx], 1)


def _around(dense: Tensor, site: Tensor, cell: Tensor) -> Tensor:
    """Return (..., 3, 3, 3) float32: cells (..., 3) and their neighbours; beyond the faces, the cells at the faces."""
    step = torch.arange(-1, 2, device=dense.device)
    z, y, x = ((cell[..., axis, None] + step).clamp(0, size - 1) for axis, size in enumerate(dense.shape[1:]))
    return dense[
        site[..., None, None, None], z[..., :, None, None], y[..., None, :, None], x[..., None, None, :]
    ].float()


def _summit(around: Tensor, cell: Tensor, sizes: torch.Size) -> Tensor:
    """Return (n, 3): how many cells the summits of parabolas through the middle and its neighbours lie off it."""
    middle = around[:, 1, 1, 1]
    offsets = []
    for axis, (before, after) in enumerate(
        ((around[:, 0, 1, 1], around[:, 2, 1, 1]), (around[:, 1, 0, 1], around[:, 1, 2, 1]),
         (around[:, 1, 1, 0], around[:, 1, 1, 2]))
    ):  # fmt: skip
        bend = before - 2 * middle + after
        at_face = (cell[:, axis] == 0) | (cell[:, axis] == sizes[axis] - 1)
        flat = at_face | (bend >= 0)
        offsets.append(torch.where(flat, 0.0, (before - after) / torch.where(flat, -1.0, 2 * bend)).clamp(-0.5, 0.5))
    return torch.stack(offsets, 1)


def window_peaks(
    logits: NDArray[np.float32], middles: NDArray[np.float64], patch_shape: tuple[int, int, int], n: int
) -> NDArray[np.float32]:
    """
    Return where a classifier without a map sees something: as rough as its windows are large.

    A lesion lights up all windows that hold it, so it lies about the mean of their middles.

    Parameters
    ----------
    logits
        (windows, 14).
    middles
        (windows, 3): (z, y, x) of the middle of what each window shows of the volume.
    patch_shape
        Of a window.
    n
        So many a site, at most.

    Returns
    -------
    NDArray
        (m, 5), as of `map_peaks`.
    """
    rows = []
    for site in range(len(SITES)):
        logit = logits[:, site].astype(np.float64)
        # Squared, so that many windows that see a little don't outweigh the few that see it.
        weight = sigmoid(logit) ** 2
        free = np.ones(len(logits), np.bool_)
        for _ in range(n):
            if not free.any():
                break
            best = int(np.argmax(np.where(free, logit, -np.inf)))
            near = (np.abs(middles - middles[best]) < patch_shape).all(axis=1)
            zyx = np.average(middles[near], axis=0, weights=weight[near] + 1e-30)
            rows.append([site, logit[best], *zyx])
            free &= ~near
    return np.array(rows, np.float32).reshape(-1, 5)


def best_candidates(peaks: NDArray[np.float32], affine_lps: NDArray[np.float64], n: int) -> list[Candidate]:
    """
    Return the ``n`` most probable candidates of a volume, the most probable first.

    Parameters
    ----------
    peaks
        (m, 5): site, logit, and (z, y, x) in the volume.
    affine_lps
        Of the volume.
    n
        How many, of all sites together; fewer if there are no more.
    """
    peaks = peaks[np.isfinite(peaks[:, 1])].astype(np.float64)
    peaks = peaks[np.lexsort((*peaks[:, 4:1:-1].T, peaks[:, 0], -peaks[:, 1]))]
    lps = peaks[:, 2:] @ affine_lps[:3, :3].T + affine_lps[:3, 3]
    chosen: list[int] = []
    free = np.ones(len(peaks), np.bool_)
    while len(chosen) < n and free.any():
        best = int(free.argmax())  # the first, and so the highest, that is left
        chosen.append(best)
        free &= (peaks[:, 0] != peaks[best, 0]) | (np.linalg.norm(lps - lps[best], axis=1) >= RADIUS_MM)
        free[best] = False
    return [_candidate(peaks[k], lps[k]) for k in chosen]


def _candidate(peak: NDArray[np.float64], lps_mm: NDArray[np.float64]) -> Candidate:
    site, logit, z, y, x = peak.tolist()
    left, posterior, superior = lps_mm.tolist()
    return Candidate(int(site), float(sigmoid(logit)), (z, y, x), (left, posterior, superior))
