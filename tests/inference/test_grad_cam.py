"""Grad-CAM: the logits as without it, and a map that lies where the classifier's evidence does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from aneurysm.errors import UsageError
from aneurysm.inference.ensemble import Ensemble
from aneurysm.inference.grad_cam import GradCam
from aneurysm.models.output import ModelOutput
from aneurysm.models.registry import build_model
from aneurysm.patches.views.view import Box
from aneurysm.windows.predict import WindowOptions, predict_sources
from tests.support.painted import STEP, WINDOW, Painted

LEFT, RIGHT, PRESENT = 4, 5, 13


class SideWise(nn.Module):
    """Two channels of features, a cell per 4 voxels: the first speaks for the left artery, the second for the right."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv3d(1, 2, 5, stride=4, padding=2, bias=False)
        self.head = nn.Linear(2, 14)
        self.features.weight.data.fill_(1.0)
        self.features.weight.data[1] *= -1
        self.head.weight.data.zero_()
        self.head.bias.data.fill_(-1.0)
        self.head.weight.data[LEFT, 0] = self.head.weight.data[RIGHT, 1] = self.head.weight.data[PRESENT] = 5.0

    def forward(self, image):
        return ModelOutput(self.head(self.features(image).relu_().mean((2, 3, 4))))


@pytest.fixture
def image():
    image = torch.zeros(2, 1, 32, 32, 40)
    image[0, 0, 8, 20, 32] = 40.0
    image[1, 0, 16, 4, 12] = -40.0
    return image


def test_each_label_is_seen_where_its_evidence_is(image):
    model = SideWise()
    plain = model(image).logits
    with torch.inference_mode():
        left, right = GradCam(model, LEFT)(image), GradCam(model, RIGHT)(image)
    for output in (left, right):
        assert torch.allclose(output.logits, plain)
        assert output.dense.shape == (2, 14, 32, 32, 40)
        assert output.stride_zyx == (1, 1, 1)
    assert peak(left.dense[0, LEFT]) == (8, 20, 32)
    assert peak(right.dense[1, RIGHT]) == (16, 4, 12)
    # The highest has the window's probability; of a window without evidence nothing is shown.
    assert torch.allclose(left.dense[0, LEFT].amax(), plain[0, LEFT], atol=1e-4)
    assert left.dense[1, LEFT].amax() < -13
    assert left.dense[:, PRESENT].amax() < -13


def peak(logits):
    return tuple(int(v) for v in np.unravel_index(int(logits.argmax()), logits.shape))


def test_a_mirrored_head_is_laid_back(image):
    model = SideWise()
    flipping = Ensemble([GradCam(SideWise(), LEFT)], flip=True)
    with torch.inference_mode():
        alone = GradCam(model, LEFT)(image[:1])
        both = flipping(image[:1])
        mirrored = GradCam(model, RIGHT)(image[:1].flip(-1))
    assert peak(alone.dense[0, LEFT]) == (8, 20, 32)
    assert mirrored.dense[0, RIGHT].amax() < -13
    assert both.dense.shape == alone.dense.shape
    # Its own view says left; the mirrored one, of which the sides are swapped back, says right.
    assert torch.allclose(both.logits[0, LEFT], (alone.logits[0, LEFT] + mirrored.logits[0, RIGHT]) / 2, atol=1e-5)


@pytest.mark.parametrize("stride", [8, 16])
def test_a_cell_of_the_shipped_resnet_looks_about_its_first_voxel(stride):
    """What the map's place rests on: the gradient of a cell with respect to the image has its centre there."""
    torch.manual_seed(0)
    model = build_model("resnet3d18", width=0.125, stride=stride).eval()
    cell = 64 // stride // 2
    weight = torch.zeros(64)
    for _ in range(6):
        image = torch.rand(1, 1, 64, 64, 64, requires_grad=True)
        model.features(image)[0, :, cell, cell, cell].square().sum().backward()
        weight += image.grad[0, 0].square().sum((0, 1))
    middle = float((weight * torch.arange(64)).sum() / weight.sum())
    assert middle == pytest.approx(cell * stride, abs=stride / 4)


@pytest.mark.parametrize("name, options", [("resnet3d18", {"width": 0.125}), ("resnet3d34", {"width": 0.125})])
def test_shipped_classifiers_keep_their_logits(name, options):
    torch.manual_seed(1)
    model = build_model(name, **options).eval()
    image = torch.rand(2, 1, 32, 48, 32)
    with torch.inference_mode():
        plain = model(image).logits
        output = GradCam(model, PRESENT)(image)
    assert torch.allclose(output.logits, plain, atol=1e-5)
    assert output.dense.isfinite().all()
    assert not output.dense.requires_grad


class Spots(nn.Module):
    """Finds marks as `Finds` does, by features that Grad-CAM can take hold of, and without a map."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv3d(1, 14, 1)
        self.features.weight.data.fill_(1.0)
        self.features.bias.data = -torch.arange(1, 15.0) * STEP / (WINDOW[1] - WINDOW[0])

    def forward(self, image):
        found = self.features(image).abs().sub(1e-3).clamp_max(0).amin((2, 3, 4)) * -16e3 - 8
        return ModelOutput(torch.cat([found[:, :13], found[:, :13].amax(1, keepdim=True)], 1))


def test_candidates_are_what_they_are_without_it(painted):
    cache = painted(Painted("1.2.3", (40, 40, 48), ((4, (20, 12, 30)), (7, (3, 30, 8)))))
    options = {"view": Box((24, 24, 24)), "candidates": 3}
    (plain,) = predict_sources(Spots(), cache, WindowOptions(**options))
    (cam,) = predict_sources(GradCam(Spots(), 4), cache, WindowOptions(**options, map_label=4, cam=True))
    assert plain.probabilities[4] > 0.9
    assert cam.candidates == plain.candidates
    assert np.allclose(cam.probabilities, plain.probabilities, atol=1e-5)
    assert cam.lesion_map.shape == (40, 40, 48)


def test_what_can_t_be_shown_is_told(image):
    class Flat(nn.Module):
        def forward(self, image):
            return ModelOutput(image.mean((1, 2, 3, 4))[:, None].expand(-1, 14))

    for model, words in ((build_model("cnn3d").eval(), "map of its own"), (Flat(), "no layer")):
        with torch.inference_mode(), pytest.raises(UsageError, match=words):
            GradCam(model, PRESENT)(image)
