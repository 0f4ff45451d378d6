"""Means of several models, and of the mirrored head with the sides swapped back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aneurysm.errors import UsageError
from aneurysm.inference.ensemble import Ensemble
from aneurysm.models.output import ModelOutput
from aneurysm.patches.views.view import Box
from aneurysm.windows.predict import WindowOptions, predict_cached
from tests.support.painted import Painted


class Says(nn.Module):
    """A fixed answer."""

    def __init__(self, logits, dense=None, stride=(1, 1, 1)) -> None:
        super().__init__()
        self.output = (logits, dense, stride)

    def forward(self, image):
        return ModelOutput(*self.output)


class Sides(nn.Module):
    """Whatever is bright on the left (high x) is in the left middle cerebral artery, else in the right one."""

    def forward(self, image):
        bright = torch.where(image[:, 0] > 0.5, 5.0, -5.0)
        dense = torch.full((len(image), 14, *bright.shape[1:]), -5.0)
        half = image.shape[-1] // 2
        dense[:, 4, :, :, half:] = bright[..., half:]
        dense[:, 5, :, :, :half] = bright[..., :half]
        return ModelOutput(dense.amax((2, 3, 4)), dense)


IMAGE = torch.zeros(2, 1, 4, 4, 4)


def test_logits_and_maps_are_averaged():
    one, two = torch.randn(2, 14), torch.randn(2, 14)
    map_one, map_two = torch.randn(2, 14, 4, 4, 4), torch.randn(2, 14, 4, 4, 4)
    kept = map_one.clone()
    output = Ensemble([Says(one, map_one), Says(two, map_two)])(IMAGE)
    torch.testing.assert_close(output.logits, (one + two) / 2)
    torch.testing.assert_close(output.dense, (map_one + map_two) / 2)
    assert torch.equal(map_one, kept)


@pytest.mark.parametrize(
    "other", [Says(torch.zeros(2, 14)), Says(torch.zeros(2, 14), torch.zeros(2, 14, 2, 2, 2), (2, 2, 2))]
)
def test_maps_that_differ_are_left_out(other):
    dense = torch.zeros(2, 14, 4, 4, 4)
    for members in ([Says(torch.ones(2, 14), dense), other], [other, Says(torch.ones(2, 14), dense)]):
        output = Ensemble(members)(IMAGE)
        assert output.dense is None
        assert output.logits.unique().tolist() == [0.5]


def test_a_model_that_knows_sides_says_the_same_of_the_mirrored_head(painted):
    shape = (12, 16, 20)
    volume = Painted("1.1", shape)
    volume.voxels[3, 4, 17] = 800
    cache = painted(volume)
    options = WindowOptions(Box(shape), candidates=2)
    (plain,) = predict_cached(Sides(), cache, [0], options)
    (both,) = predict_cached(Ensemble([Sides()], flip=True), cache, [0], options)
    assert plain.logits[4] == pytest.approx(5)
    assert plain.logits.tolist() == both.logits.tolist()
    assert plain.candidates == both.candidates
    assert both.candidates[0].site == 4
    assert both.candidates[0].zyx == (3, 4, 17)


def test_a_model_that_does_not_know_sides_doubts_both():
    logits = torch.full((2, 14), -3.0)
    logits[:, 0] = 3.0
    output = Ensemble([Says(logits)], flip=True)(IMAGE)
    assert output.logits[0, :3].tolist() == [0.0, 0.0, -3.0]


def test_a_map_that_can_t_be_mirrored_is_refused():
    model = Says(torch.zeros(2, 14), torch.zeros(2, 14, 2, 2, 2), (3, 3, 3))
    with pytest.raises(UsageError, match="4 voxels wide can't be mirrored: the model's cells are 3"):
        Ensemble([model], flip=True)(IMAGE)
