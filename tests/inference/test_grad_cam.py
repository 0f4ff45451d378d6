"""Grad-CAM: the logits as without it, and a map that lies where the classifier's evidence does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from aneurysm.errors import UsageError
from aneurysm.inference.ensemble import Ensemble
from aneurysm.inference.grad_cam import GradCam, _layer_to_show
from aneurysm.models.output import ModelOutput, mean_of_top
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
        assert output.cam.shape == (2, 14, 32, 32, 40)
        assert output.dense is None
    assert peak(left.cam[0, LEFT]) == (8, 20, 32)
    assert peak(right.cam[1, RIGHT]) == (16, 4, 12)
    # The highest has the window's probability; of a window without evidence nothing is shown.
    assert torch.allclose(left.cam[0, LEFT].amax(), plain[0, LEFT], atol=1e-4)
    assert left.cam[1, LEFT].amax() < -13
    assert left.cam[:, PRESENT].amax() < -13


def peak(logits):
    return tuple(int(v) for v in np.unravel_index(int(logits.argmax()), logits.shape))


def test_a_mirrored_head_is_laid_back(image):
    model = SideWise()
    flipping = Ensemble([GradCam(SideWise(), LEFT)], flip=True)
    with torch.inference_mode():
        alone = GradCam(model, LEFT)(image[:1])
        both = flipping(image[:1])
        mirrored = GradCam(model, RIGHT)(image[:1].flip(-1))
    assert peak(alone.cam[0, LEFT]) == (8, 20, 32)
    assert mirrored.cam[0, RIGHT].amax() < -13
    assert both.cam.shape == alone.cam.shape
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
    assert output.cam.isfinite().all()
    assert not output.cam.requires_grad


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
    (cam,) = predict_sources(GradCam(Spots(), 4), cache, WindowOptions(**options, map_label=4))
    assert plain.probabilities[4] > 0.9
    assert cam.candidates == plain.candidates
    assert np.allclose(cam.probabilities, plain.probabilities, atol=1e-5)
    assert cam.lesion_map.shape == (40, 40, 48)


class Deep(nn.Module):
    """
    A U-Net of one level, of which the answer is known: a cell of 4 voxels that is bright anywhere says so.

    The map has a second source, at full resolution, that its logits don't rest on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.deep, self.up = nn.Conv3d(1, 1, 1, bias=False), nn.MaxPool3d(4), nn.Upsample(scale_factor=4)
        self.map = nn.Conv3d(2, 14, 1)
        self.fine.weight.data.fill_(1.0)
        self.map.weight.data.zero_()
        self.map.bias.data.fill_(-2.0)
        self.map.weight.data[LEFT, 1] = self.map.weight.data[RIGHT, 0] = 1.0

    def forward(self, image):
        fine = self.fine(image)
        dense = self.map(torch.cat([fine, self.up(self.deep(fine))], 1))
        return ModelOutput(mean_of_top(dense, 64), dense)


def test_of_a_u_net_the_deepest_features_are_shown_and_candidates_are_of_its_map():
    model = Deep()
    image = torch.zeros(1, 1, 32, 32, 40)
    image[0, 0, 9, 21, 33] = 6.0
    plain = model(image)
    with torch.inference_mode():
        left, right = GradCam(model, LEFT)(image), GradCam(model, RIGHT)(image)
    for output in (left, right):
        assert torch.equal(output.dense, plain.dense)
        assert torch.equal(output.logits, plain.logits)
    cells = (left.cam[0, LEFT] > left.cam[0, LEFT].amax() - 0.5).nonzero().float().mean(0)
    assert cells.tolist() == pytest.approx([9.5, 21.5, 33.5])
    assert left.cam[0, LEFT].amax() > 2
    # What the logit of the right artery rests on are the fine features alone.
    assert right.cam[0, RIGHT].amax() < -13
    mirrored = Ensemble([GradCam(Deep(), LEFT)], flip=True)(image)
    assert torch.allclose(mirrored.dense[0, LEFT], (plain.dense[0, LEFT] + plain.dense[0, RIGHT]) / 2)


def test_a_cell_of_the_shipped_u_net_looks_about_the_middle_of_its_voxels():
    """Two neighbours look at places that mirror each other in the window's middle; each sees far beyond its own."""
    torch.manual_seed(0)
    model = build_model("unet3d", width=0.125).eval()
    layer = _layer_to_show(model, torch.rand(1, 1, 64, 32, 32))
    assert layer is model.net.down_4
    seen = []
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    middles = []
    for cell in (1, 2):
        weight = torch.zeros(64)
        for _ in range(2):
            image = torch.rand(1, 1, 64, 32, 32, requires_grad=True)
            model(image)
            seen.pop()[0, :, cell].square().sum().backward()
            weight += image.grad[0, 0].square().sum((1, 2))
        middles.append(float((weight * torch.arange(64)).sum() / weight.sum()))
    assert middles[1] - middles[0] > 1
    assert sum(middles) / 2 == pytest.approx((1 * 16 + 7.5 + 2 * 16 + 7.5) / 2, abs=1.5)


def test_the_shipped_u_net_keeps_its_answer():
    torch.manual_seed(1)
    model = build_model("unet3d", width=0.25).eval()
    image = torch.rand(1, 1, 32, 48, 32)
    with torch.inference_mode():
        plain, output = model(image), GradCam(model, PRESENT)(image)
    assert torch.allclose(output.logits, plain.logits, atol=1e-5)
    assert torch.allclose(output.dense, plain.dense, atol=1e-5)
    assert output.cam.shape == plain.dense.shape
    assert output.cam.isfinite().all()


def test_what_can_t_be_shown_is_told(image):
    class Flat(nn.Module):
        def forward(self, image):
            return ModelOutput(image.mean((1, 2, 3, 4))[:, None].expand(-1, 14))

    for model, words in ((build_model("cnn3d").eval(), "own map is of its deepest features"), (Flat(), "no layer")):
        with torch.inference_mode(), pytest.raises(UsageError, match=words):
            GradCam(model, PRESENT)(image)
