"""Losses of maps, with known answers."""

from math import log

import numpy as np
import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.labels import SITES, VESSEL_VALUES
from aneurysm.training.dense_losses import shrink, top_k_bce, tversky_bce, vessel_channels

LOSSES = [top_k_bce, tversky_bce]


def kept(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.bool)


def random_map(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator)
    return logits, (torch.rand(2, 3, 4, 5, 6, generator=generator) < 0.2).float()


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.2, 1.0])
def test_top_k_is_the_mean_of_the_hardest_cells(fraction):
    logits, target = random_map()
    x, y = logits.double().numpy().reshape(6, 120), target.numpy().reshape(6, 120)
    cost = np.sort(np.logaddexp(0, np.where(y == 1, -x, x)), axis=1)
    expected = cost[:, -max(1, round(fraction * 120)) :].mean()
    assert top_k_bce(logits, target, kept(2, 3), fraction=fraction).item() == pytest.approx(expected, rel=1e-5)


def test_a_missed_lesion_of_one_cell_counts():
    """Among 1000 cells that are right, it is 1 of the 200 hardest."""
    logits, target = torch.full((1, 1, 10, 10, 10), -20.0), torch.zeros(1, 1, 10, 10, 10)
    target[0, 0, 3, 4, 5] = 1
    assert top_k_bce(logits, target, kept(1, 1)).item() == pytest.approx(20 / 200, rel=1e-4)


def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities 0.5, 0.5, 0.25, 0 in four cells, the first and third of which are lesion."""
    logits = torch.tensor([0, 0, -log(3), -100]).reshape(1, 1, 1, 2, 2)
    return logits, torch.tensor([1.0, 0, 1, 0]).reshape(1, 1, 1, 2, 2)


@pytest.mark.parametrize(
    "alpha, beta, index",
    [(0.5, 0.5, 2 * 0.75 / (1.25 + 2)), (0.3, 0.7, 0.75 / (0.75 + 0.3 * 0.5 + 0.7 * 1.25))],
    ids=["Dice", "Tversky"],
)
def test_tversky_by_hand(alpha, beta, index):
    cross_entropy = (log(2) + log(2) + log(4) + 0) / 4
    found = tversky_bce(*by_hand(), kept(1, 1), alpha=alpha, beta=beta).item()
    assert found == pytest.approx(1 - index + cross_entropy, rel=1e-5)


def test_a_perfect_mask_costs_nothing():
    target = random_map()[1]
    assert tversky_bce(target * 200 - 100, target, kept(2, 3)).item() == pytest.approx(0, abs=1e-6)


def test_an_empty_mask_has_no_dice():
    logits = torch.zeros(1, 2, 2, 2, 2)
    target = torch.zeros(1, 2, 2, 2, 2)
    assert tversky_bce(logits, target, kept(1, 2)).item() == pytest.approx(log(2))
    target[0, 0] = 1  # p is 0.5 everywhere: Dice is 2 * 4 / (4 + 8)
    assert tversky_bce(logits, target, kept(1, 2)).item() == pytest.approx(1 / 3 + log(2))


@pytest.mark.parametrize("loss", LOSSES)
def test_an_ignored_channel_has_no_part(loss):
    logits, target = random_map()
    ignore = kept(2, 3)
    ignore[0] = ignore[1, 2] = True
    spoilt = logits.masked_fill(ignore[:, :, None, None, None], float("nan")).requires_grad_()
    found = loss(spoilt, target, ignore)
    torch.testing.assert_close(found, loss(logits[1:, :2], target[1:, :2], kept(1, 2)))
    found.backward()
    assert spoilt.grad.isfinite().all()
    assert (spoilt.grad[0] == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_all_ignored_is_zero_with_a_gradient(loss):
    logits, target = random_map()
    logits.requires_grad_()
    found = loss(logits, target, ~kept(2, 3))
    assert found.item() == 0
    found.backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(loss, dtype):
    """A float16 sum of 48^3 ones would be infinite."""
    logits = torch.full((1, 1, 48, 48, 48), 30.0, dtype=dtype, requires_grad=True)
    found = loss(logits, torch.ones(1, 1, 48, 48, 48, dtype=torch.uint8), kept(1, 1))
    assert found.item() == pytest.approx(0, abs=1e-6)
    loss(-logits, torch.ones(1, 1, 48, 48, 48), kept(1, 1)).backward()
    assert logits.grad.isfinite().all()


def test_each_vessel_goes_to_its_label():
    mask = torch.arange(14, dtype=torch.uint8).reshape(1, 1, 1, 2, 7)
    channels = vessel_channels(mask)
    assert channels.shape == (1, 14, 1, 2, 7)
    for label, value in enumerate(VESSEL_VALUES):
        assert channels[0, label].flatten().nonzero().tolist() == [[value]]
    assert channels[0, SITES.index("Anterior Communicating Artery"), 0, 1, 6]  # value 13
    assert channels[0, SITES.index("Left Infraclinoid Internal Carotid Artery"), 0, 0, 6]  # value 6
    assert channels[0, 13].flatten().tolist() == [False] + [True] * 13


def test_a_lesion_of_one_cell_survives_shrinking():
    target = torch.zeros(1, 1, 8, 12, 16)
    target[0, 0, 5, 2, 15] = 1
    small = shrink(target, (2, 3, 4))
    assert small.nonzero().tolist() == [[0, 0, 1, 0, 3]]


def test_a_map_of_no_half_is_refused():
    with pytest.raises(UsageError, match=r"\(8, 12, 16\) cells can't be halved into one of \(3, 3, 4\)"):
        shrink(torch.zeros(1, 1, 8, 12, 16), (3, 3, 4))
