import pytest
import torch

from aneurysm.models.pooling import POOLINGS
from aneurysm.models.registry import ARCHITECTURES

PATCHES = torch.tensor([[0.1, 0.5], [0.3, 0.5], [0.2, 0.0], [0.4, 0.0]])


@pytest.mark.parametrize(
    "name, expected",
    [("max", [0.4, 0.5]), ("mean-top", [0.3, 1 / 3]), ("noisy-or", [1 - 0.9 * 0.7 * 0.8 * 0.6, 0.75])],
)
def test_known_answers(name, expected):
    assert POOLINGS[name](PATCHES).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", POOLINGS)
def test_one_patch_is_the_series(name):
    assert POOLINGS[name](PATCHES[:1]).tolist() == pytest.approx(PATCHES[0].tolist())


def test_each_architecture_names_a_pooling():
    assert {a.pooling for a in ARCHITECTURES.values()} <= set(POOLINGS)
