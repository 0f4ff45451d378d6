"""Caches of small volumes of noise, with known heads, vessels and lesions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aneurysm.annotations.lesions import Lesion, UnplacedLesion
from aneurysm.cache.cache import Cache, open_cache
from aneurysm.cache.layout import CacheLayout
from aneurysm.cache.tables import write_tables
from aneurysm.cache.volume import close_volumes
from aneurysm.cache.writer import write_volume
from aneurysm.labels import LABELS, SITES
from aneurysm.spec import load_spec
from aneurysm.volume.blocks import Survey
from aneurysm.volume.intensity import Intensity
from tests.support.cache_paths import volume_path
from tests.support.metadata import metadata

AFFINE = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])


def blocks_of(shape, head, vessels=None) -> Survey:
    """Blocks of 8 voxels; ``head`` and ``vessels`` are boxes (slices) of blocks."""
    counts = tuple(-(-n // 8) for n in shape)
    marked = [np.zeros(counts, bool), np.zeros(counts, bool)]
    marked[0][head] = True
    if vessels is not None:
        marked[1][vessels] = True
    return Survey((8, 8, 8), marked[0], marked[1])


def add_volume(
    root: Path,
    uid: str,
    *,
    shape=(70, 80, 90),
    modality="CTA",
    sites=(),
    places=None,
    labels=True,
    mask=False,
    blocks=None,
    spec="rsna-1mm",
    unplaced=(),
    patient="",
    seed=0,
    affine=AFFINE,
    voxels=None,
) -> None:
    """Noise, or ``voxels``; ``sites`` are its lesions', at ``places`` (z, y, x), or unplaced where that is None."""
    spec = load_spec(spec)
    rng = np.random.default_rng(int(uid.replace(".", "")) + seed)
    if voxels is None:
        voxels = rng.integers(-1000, 2000, shape).astype(spec.storage.dtype)
    places = rng.uniform(10, 60, (len(sites), 3)) if places is None else np.asarray(places, float)
    lesions = tuple(
        Lesion(SITES[s], tuple(p.tolist()), tuple(p[::-1].tolist()), i) for i, (s, p) in enumerate(zip(sites, places))
    )
    present = {site: int(i in sites) for i, site in enumerate(SITES)}
    for site, _ in unplaced:
        present[SITES[site]] = 1
    unit = "HU" if modality == "CTA" else "arbitrary"
    own = metadata(
        uid,
        affine=affine,
        modality=modality,
        digest=spec.digest,
        intensity=Intensity(unit, 2.0, -10.0, (-3000.0, 5000.0), (-100.0, 900.0), {}),
        labels={**present, LABELS[13]: int(any(present.values()))} if labels else None,
        lesions=lesions,
        unplaced=tuple(UnplacedLesion(SITES[s], reason, "", 50 + i) for i, (s, reason) in enumerate(unplaced)),
        blocks=(blocks or blocks_of(shape, np.s_[2:7, 2:8, 2:9], np.s_[4:5, 4:5, 4:6])).pack(),
        patient_key=patient,
    )
    vessels = (rng.random(shape) < 0.1).astype(np.uint8) * 5 if mask else None
    folder = volume_path(root, uid)
    write_volume(folder, voxels, own, storage=spec.storage, fill=-1000, vessels=vessels)


def finish_cache(root: Path, spec="rsna-1mm") -> Cache:
    (root / "spec.toml").write_text(load_spec(spec).to_toml())
    write_tables(CacheLayout(root))
    close_volumes()
    return open_cache(root)
