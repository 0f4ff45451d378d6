"""Attention over a bag: equal to MONAI's where both do the same, blind to the order, and its map adds up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aneurysm.models.attention_mil import AttentionMIL, GatedAttention
from aneurysm.models.output import check_output


@pytest.fixture(scope="module")
def model() -> AttentionMIL:
    torch.manual_seed(0)
    return AttentionMIL(2, hidden=16).eval()


@pytest.fixture(scope="module")
def bag() -> Tensor:
    """Two series of five pictures, of odd sizes."""
    return torch.randn(2, 2, 5, 70, 50, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_output_is_what_models_must_return(model, bag):
    output = check_output(model(bag), bag)
    assert output.dense is not None
    assert output.dense.shape == (2, 14, 5, 3, 2)


@torch.no_grad()
def test_the_mean_of_the_map_is_the_answer(model, bag):
    output = model(bag)
    assert torch.allclose(output.dense.mean((2, 3, 4)), output.logits, atol=1e-5)


@torch.no_grad()
def test_the_order_of_pictures_does_not_count(model, bag):
    order = [3, 0, 4, 2, 1]
    straight, shuffled = model(bag), model(bag[:, :, order])
    assert torch.allclose(straight.logits, shuffled.logits, atol=1e-5)
    assert torch.allclose(straight.dense[:, :, order], shuffled.dense, atol=1e-5)


def test_each_label_has_pictures_of_its_own():
    """Two labels, each of which is in a picture of its own: attention finds both, where one for all could not."""
    torch.manual_seed(0)
    attention, head = GatedAttention(4, 8, 2), nn.Linear(4, 2)
    optimizer = torch.optim.Adam([*attention.parameters(), *head.parameters()], lr=0.02)
    for _ in range(300):
        bags, targets = torch.randn(32, 6, 4) * 0.3, torch.randint(0, 2, (32, 2)).float()
        bags[:, 1, 0] += 3 * targets[:, 0]
        bags[:, 4, 1] += 3 * targets[:, 1]
        bag = torch.einsum("bkl,bkf->blf", attention(bags), bags)
        logits = (bag * head.weight).sum(2) + head.bias
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    positive = torch.randn(64, 6, 4) * 0.3
    positive[:, 1, 0] += 3
    positive[:, 4, 1] += 3
    with torch.no_grad():
        found = attention(positive).argmax(1)
    assert (found[:, 0] == 1).float().mean() > 0.9
    assert (found[:, 1] == 4).float().mean() > 0.9


@torch.no_grad()
def test_without_gate_and_with_one_attention_for_all_it_is_monais():
    from monai.networks.nets.milmodel import MILModel

    torch.manual_seed(2)
    ours = AttentionMIL(1, hidden=2048).eval()  # as many units as MONAI's attention has
    backbone = nn.Sequential(ours.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    theirs = MILModel(14, mil_mode="att", pretrained=False, backbone=backbone, backbone_num_features=1280).eval()
    ours.attention.gate.weight.zero_()
    ours.attention.gate.bias.fill_(100)
    value, _, score = theirs.attention
    ours.attention.value.load_state_dict(value.state_dict())
    ours.attention.score.weight.copy_(score.weight.expand(14, -1))
    ours.attention.score.bias.copy_(score.bias.expand(14))
    theirs.myfc.load_state_dict(ours.head.state_dict())
    bag = torch.randn(2, 1, 4, 64, 64)
    assert torch.allclose(ours(bag).logits, theirs(bag.transpose(1, 2)), atol=1e-5)
