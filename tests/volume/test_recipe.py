"""A change of the arithmetic changes RECIPE_VERSION, too: caches of the old one must not be taken for those of the new.

The voxels are those that recipe 3 stores of two small series. Where this fails, and the new voxels are right, raise
RECIPE_VERSION and pin them anew.
"""

from __future__ import annotations

import numpy as np
import pytest

from aneurysm.spec import RECIPE_VERSION
from tests.support.acquisition import acquire, rotation
from tests.support.cached import cached
from tests.support.pattern import anatomy
from tests.support.series import write_series

PINNED = {
    "CT": ([23, 32, 28], [259, 335, 380, 216, 281, 325, 179, 191, 319, 312, 362, 417]),
    "MR": ([23, 32, 28], [2145, 2391, 2536, 2003, 2216, 2358, 1881, 1923, 2339, 2315, 2478, 2656]),
}


@pytest.mark.parametrize("modality", PINNED)
def test_the_voxels_of_this_recipe(tmp_path, modality):
    """Tilted, oblique, uneven and finer than the grid in one direction: every step of the arithmetic takes part."""
    offsets = np.cumsum([0, *([1.3, 0.8, 2.1] * 5)])
    stack = acquire(offsets_mm=offsets, turn=rotation((1, 2, 3), 11), tilt_deg=8, shape=(48, 40), spacing_mm=(0.6, 0.7))
    pattern = anatomy(stack.centre, stack.extent_mm, base=300 if modality == "CT" else 700)
    noise = np.random.RandomState(3).normal(0, 60, (len(stack), *stack.shape))
    write_series(tmp_path / "s", stack, np.clip(stack.sample(pattern) + noise, 0, 2000), modality=modality)
    stored = cached(tmp_path / "s").stored
    shape, voxels = PINNED[modality]
    found = stored[3::7, 5::9, 4::8].ravel()[:12].tolist()
    assert RECIPE_VERSION == 3
    assert list(stored.shape) == shape
    # Another processor may round to the neighbouring step.
    assert np.abs(np.subtract(found, voxels)).max() <= 2, found
