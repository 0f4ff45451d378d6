"""Fixture: a cache of noise with what an evaluation asks of series: planes, slice thickness, patients, lesions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aneurysm.labels import MODALITIES
from tests.support.cache_paths import volume_path
from tests.support.noise_cache import add_volume, finish_cache


def set_source(root, uid, *, plane, thickness):
    path = volume_path(root, uid) / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["aneurysm"]["source"] |= {
        "plane": plane, "spacing_mm": [9.0, 1.0, 1.0], "acquisition": {"SliceThickness": thickness},
    }  # fmt: skip
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def report_cache(tmp_path_factory):
    """Forty series of noise, every second with a lesion or two, of all modalities. Don't change it."""
    root = tmp_path_factory.mktemp("report") / "cache"
    root.mkdir()
    for i in range(40):
        sites = () if i % 2 else ((i // 2 % 13,) if i % 4 else (i // 2 % 13, 6))
        sites = tuple(dict.fromkeys(sites))
        places = np.array([[20.0, 24, 18], [28, 12, 30]])[: len(sites)]
        patient = f"p{i // 2 if i > 35 else i}"
        shape, modality = (40, 44, 48), MODALITIES[i % 4]
        add_volume(root, f"1.2.{i + 1}", shape=shape, modality=modality, sites=sites, places=places, patient=patient)
        set_source(root, f"1.2.{i + 1}", plane="sagittal" if i % 8 == 0 else "axial", thickness=(0.5, 1.2, 5)[i % 3])
    return finish_cache(root)
