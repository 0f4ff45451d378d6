"""Answers averaged over draws of the augmentation: sides are swapped back, places stay, each call draws the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.inference.ensemble import Ensemble
from aneurysm.models.output import ModelOutput
from aneurysm.patches.augment_config import AugmentConfig, Flip, Window
from aneurysm.patches.views.config import MipConfig
from aneurysm.patches.views.view import Box
from aneurysm.windows.predict import WindowOptions, predict_cached
from tests.support.mark_finder import Finds
from tests.support.painted import Painted, PaintedCaches

OFF = AugmentConfig.off()
MIRRORED = OFF.model_copy(update={"flip": Flip(left_right=1.0)})
SHAPE = (12, 16, 20)


class Halves(torch.nn.Module):
    """Logit 0 is the brightness of the left of the image, 1 that of the right: labels of one site on two sides."""

    def forward(self, image: torch.Tensor) -> ModelOutput:
        middle = image.shape[-1] // 2
        logits = torch.full((len(image), 14), -2.0)
        logits[:, 0] = image[..., middle:].mean((1, 2, 3, 4)) * 10
        logits[:, 1] = image[..., :middle].mean((1, 2, 3, 4)) * 4
        return ModelOutput(logits)


@pytest.fixture
def cache(painted: PaintedCaches):
    voxels = np.random.default_rng(0).integers(-100, 400, SHAPE, np.int16)
    voxels[..., 12:] += 300
    return painted(Painted("1.1", SHAPE, voxels=voxels))


def answer(cache, model, **options):
    (found,) = predict_cached(model, cache, [0], WindowOptions(**{"view": Box(SHAPE), **options}))
    return found


@pytest.mark.parametrize("view", [Box(SHAPE), MipConfig(size_mm=20).build((1.0, 1.0, 1.0))], ids=["patch", "pictures"])
def test_a_draw_that_mirrors_is_the_mirror_image(cache, view):
    drawn = answer(cache, Halves(), view=view, draws=1, augment=MIRRORED)
    flipped = answer(cache, Ensemble([Halves()], flip=True, planes=view.planes), view=view)
    assert drawn.logits.tolist() == pytest.approx(flipped.logits.tolist(), abs=1e-5)
    assert drawn.logits.tolist() != pytest.approx(answer(cache, Halves(), view=view).logits.tolist(), abs=1e-3)


def test_draws_that_change_nothing_change_nothing(cache):
    assert np.array_equal(answer(cache, Halves(), draws=3, augment=OFF).logits, answer(cache, Halves()).logits)


def test_the_same_draws_come_each_time_and_more_of_them_say_something_else(cache):
    changed = OFF.model_copy(update={"window": Window(p=1.0)})
    first, again, more = (answer(cache, Halves(), draws=n, augment=changed).logits for n in (2, 2, 3))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, more)


def test_places_are_those_of_the_head_as_it_is(painted: PaintedCaches):
    marked = painted(Painted("1.1", (16, 24, 24), marks=((4, (5, 6, 19)),)))
    options = {"view": Box((16, 24, 24)), "candidates": 1}
    plain, drawn = (answer(marked, Finds(), **options, draws=n, augment=MIRRORED) for n in (0, 2))
    assert plain.candidates == drawn.candidates
    assert plain.candidates[0].zyx == (5, 6, 19)


def test_fewer_than_none_are_refused():
    with pytest.raises(UsageError, match="windows of"):
        WindowOptions(Box(SHAPE), draws=-1)
