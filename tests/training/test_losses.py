"""Losses of (B, 14) logits against formulas written out one number at a time, and what ignoring means."""

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.training.losses import asymmetric, bce, consistency, focal

NONE = torch.zeros(1, 1, dtype=torch.bool)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def plain_bce(x: float, y: float) -> float:
    return -y * log(sigmoid(x)) - (1 - y) * log(1 - sigmoid(x))


def plain_focal(x: float, y: float, alpha: float = 0.25, gamma: float = 2.0) -> float:
    p_t, alpha_t = (sigmoid(x), alpha) if y else (1 - sigmoid(x), 1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * log(p_t)


def plain_asymmetric(x: float, y: float) -> float:
    p, shifted = sigmoid(x), max(sigmoid(x) - 0.05, 0)
    return -log(p) if y else -(shifted**4) * log(1 - shifted)


PLAIN = [
    pytest.param(bce, plain_bce, id="bce"),
    pytest.param(focal, plain_focal, id="focal"),
    pytest.param(asymmetric, plain_asymmetric, id="asymmetric"),
]
LOSSES = [bce, focal, asymmetric]


@pytest.mark.parametrize("loss, plain", PLAIN)
@settings(deadline=None)
@given(x=st.floats(-12, 12), y=st.sampled_from([0.0, 1.0]))
def test_one_logit_costs_what_the_formula_says(loss, plain, x, y):
    found = loss(torch.tensor([[x]]), torch.tensor([[y]]), NONE).item()
    assert found == pytest.approx(plain(x, y), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    "loss, target, expected",
    [
        (bce, 1.0, 0.693147),
        (focal, 1.0, 0.043322),  # 0.25 * 0.5^2 * ln 2
        (focal, 0.0, 0.129965),  # 0.75 * 0.5^2 * ln 2
        (asymmetric, 1.0, 0.693147),
        (asymmetric, 0.0, 0.024515),  # 0.45^4 * -ln 0.55
    ],
)
def test_an_undecided_logit_costs_a_known_sum(loss, target, expected):
    assert loss(torch.zeros(1, 1), torch.tensor([[target]]), NONE).item() == pytest.approx(expected, rel=1e-4)


def test_focal_without_its_two_ideas_is_bce():
    x, y = torch.randn(4, 14), torch.randint(0, 2, (4, 14)).float()
    ignore = torch.zeros(4, 14, dtype=torch.bool)
    torch.testing.assert_close(focal(x, y, ignore, alpha=None, gamma=0), bce(x, y, ignore))


def test_asymmetric_without_its_two_ideas_is_bce():
    x, y = torch.randn(4, 14), torch.randint(0, 2, (4, 14)).float()
    ignore = torch.zeros(4, 14, dtype=torch.bool)
    found = asymmetric(x, y, ignore, gamma_positive=0, gamma_negative=0, margin=0)
    torch.testing.assert_close(found, bce(x, y, ignore))


def test_negatives_below_the_margin_cost_nothing():
    x = torch.tensor([[-3.0]], requires_grad=True)  # p = 0.047
    asymmetric(x, torch.zeros(1, 1), NONE).backward()
    assert x.grad.item() == 0


def test_pos_weight_counts_the_positives_of_its_label():
    ignore = torch.zeros(1, 2, dtype=torch.bool)
    weight = torch.tensor([3.0, 5.0])
    found = bce(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), ignore, pos_weight=weight)
    assert found.item() == pytest.approx((3 * log(2) + log(2)) / 2)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("nothing", [float("nan"), float("inf"), 3e38])
def test_what_is_ignored_has_no_part(loss, nothing):
    x = torch.tensor([[0.3, nothing], [-1.0, 0.2]], requires_grad=True)
    y = torch.tensor([[1.0, 255.0], [0.0, 1.0]])
    ignore = torch.tensor([[False, True], [False, False]])
    found = loss(x, y, ignore)
    kept = torch.tensor([[0.3], [-1.0], [0.2]])
    expected = loss(kept, torch.tensor([[1.0], [0.0], [1.0]]), torch.zeros(3, 1, dtype=torch.bool))
    torch.testing.assert_close(found, expected)
    found.backward()
    assert x.grad[0, 1] == 0
    assert x.grad.isfinite().all()
    assert (x.grad != 0).sum() == 3


@pytest.mark.parametrize("loss", [*LOSSES, lambda x, y, ignore: consistency(x, ignore)])
def test_all_ignored_is_zero_with_a_gradient(loss):
    x = torch.randn(3, 14, requires_grad=True)
    found = loss(x, torch.ones(3, 14), torch.ones(3, 14, dtype=torch.bool))
    assert found.item() == 0
    found.backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("loss", [*LOSSES, lambda x, y, ignore: consistency(x, ignore)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [20.0, 60000.0])
def test_extreme_logits_of_any_precision_stay_finite(loss, dtype, size):
    x = torch.full((2, 14), size, dtype=dtype)
    x[1] = -size
    x.requires_grad_()
    y = (torch.arange(28).reshape(2, 14) % 2).float()
    found = loss(x, y, torch.zeros(2, 14, dtype=torch.bool))
    assert found.dtype == torch.float32
    assert found.isfinite()
    found.backward()
    assert x.grad.isfinite().all()


def odds(*probabilities: float) -> torch.Tensor:
    return torch.logit(torch.tensor([[*probabilities]], dtype=torch.float64))


def test_only_a_site_above_present_is_inconsistent():
    logits = odds(*[0.1] * 11, 0.7, 0.9, 0.5)
    none = torch.zeros(1, 14, dtype=torch.bool)
    assert consistency(logits, none).item() == pytest.approx((0.2 + 0.4) / 13, rel=1e-5)
    assert consistency(odds(*[0.1] * 13, 0.5), none).item() == 0


def test_consistency_leaves_out_ignored_sites_and_patches_without_present():
    logits = odds(*[0.1] * 11, 0.7, 0.9, 0.5).expand(2, -1)
    ignore = torch.zeros(2, 14, dtype=torch.bool)
    ignore[0, 12] = True
    ignore[1, 13] = True
    assert consistency(logits, ignore).item() == pytest.approx(0.2 / 12, rel=1e-5)
