import textwrap

import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.models.output import check_output
from aneurysm.models.registry import ARCHITECTURES, build_model, find_architecture, shipped_architecture
from aneurysm.training.objective import Objective

OWN = """
    from torch import nn
    from aneurysm.models.output import ModelOutput
    from aneurysm.models.registry import Architecture

    class Tiny(nn.Module):
        def __init__(self, in_channels, hidden=4):
            super().__init__()
            self.conv = nn.Conv3d(in_channels, hidden, 3)
            self.head = nn.Linear(hidden, 14)

        def forward(self, image):
            return ModelOutput(self.head(self.conv(image).mean((2, 3, 4))))

    TINY = Architecture("tiny", Tiny, patch_shape=(32, 32, 32))
    NUMBER = 3

    def no_module(in_channels):
        return "a model"
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "nets_of_my_own.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_name_is_found_with_defaults_that_can_be_used(name):
    architecture = find_architecture(name)
    assert architecture.name == name
    assert all(edge >= 32 and edge % 16 == 0 for edge in architecture.patch_shape)
    assert Objective(architecture.losses).weights


@pytest.mark.parametrize(
    "wrong, near", [("resnet18", "resnet3d18"), ("unet", "unet3d"), ("resnet3d18_dense", "resnet3d18-dense")]
)
def test_a_wrong_name_gets_the_nearest_one(wrong, near):
    with pytest.raises(UsageError, match=rf"no model '{wrong}'. Did you mean {near}\? There are resnet3d18, "):
        build_model(wrong)


def test_a_name_like_none_gets_the_list():
    with pytest.raises(UsageError, match=r"no model '42'. There are .*unet3d"):
        build_model("42")


def test_an_unknown_option_is_named():
    with pytest.raises(UsageError, match="dept"):
        build_model("resnet3d18", dept=18)


@pytest.mark.parametrize("width", ["big", float("nan"), float("inf")])
def test_an_impossible_value_is_told(width):
    with pytest.raises(UsageError, match=r"can't build the model 'cnn3d' with options \{'width': "):
        build_model("cnn3d", width=width)


def test_a_function_of_ones_own(own):
    model = build_model("nets_of_my_own:Tiny", 2, hidden=6)
    image = torch.zeros(3, 2, 8, 8, 8)
    assert check_output(model(image), image).logits.shape == (3, 14)
    assert find_architecture("nets_of_my_own:Tiny").losses == {"bce": 1.0}


def test_an_architecture_of_ones_own_brings_its_defaults(own):
    assert find_architecture("nets_of_my_own:TINY").patch_shape == (32, 32, 32)


@pytest.mark.parametrize(
    "name, words",
    [
        ("nets_of_nobody:Tiny", "No module named 'nets_of_nobody'.*PYTHONPATH"),
        ("nets_of_my_own:Tinny", "Tinny"),
        (":Tiny", "can't import"),
        ("nets_of_my_own:NUMBER", "int, neither a function nor an Architecture"),
        ("nets_of_my_own:no_module", "built str, not a torch.nn.Module"),
    ],
)
def test_what_can_not_be_a_model_is_refused(own, name, words):
    with pytest.raises(UsageError, match=words):
        build_model(name)


def test_a_checkpoint_can_not_have_code_imported(own):
    with pytest.raises(UsageError, match="no model"):
        shipped_architecture("nets_of_my_own:Tiny")
