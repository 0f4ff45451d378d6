"""What every architecture of the registry promises, on small patches and a fraction of the channels."""

import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.models.output import check_output
from aneurysm.models.registry import ARCHITECTURES, build_model

SMALL = {"width": 0.125}
PATCHES = [name for name, a in ARCHITECTURES.items() if a.view.name == "patch3d"]
"""Those of pictures have tests of their own."""
DENSE = {"resnet3d18-dense": (8, 8, 8), "cnn3d": (4, 4, 4), "unet3d": (1, 1, 1)}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def images(*shape: int, batch: int = 2, channels: int = 1) -> torch.Tensor:
    return torch.rand(batch, channels, *shape)


@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.parametrize("shape", [(32, 32, 32), (32, 48, 64)], ids=["cube", "box"])
def test_the_output_has_the_shapes_of_the_contract(name, shape):
    image = images(*shape, channels=2)
    output = check_output(build_model(name, 2, **SMALL)(image), image)
    assert (output.dense is not None) == (name in DENSE)
    if name in DENSE:
        assert output.stride_zyx == DENSE[name]


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet3d18-dense", "resnet3d18"])
def test_a_resnet_has_the_stride_that_was_asked_for(name, stride):
    model = build_model(name, stride=stride, **SMALL).eval()
    features = model.features(images(32, 64, 96))
    assert features.shape[2:] == (32 // stride, 64 // stride, 96 // stride)


@pytest.mark.parametrize("name, cells", [("resnet3d18-dense", (5, 5, 6)), ("cnn3d", (9, 10, 11))])
def test_the_last_cell_of_a_map_may_reach_beyond_the_patch(name, cells):
    image = images(33, 40, 41)
    output = check_output(build_model(name, **SMALL)(image), image)
    assert output.dense.shape[2:] == cells


@pytest.mark.parametrize("options", [{"depth": 50}, {"stride": 4}], ids=str)
def test_a_resnet_of_no_known_shape_is_refused(options):
    with pytest.raises(UsageError, match="choose from"):
        build_model("resnet3d18", **options)


@pytest.mark.parametrize("name", DENSE)
def test_a_change_shows_in_the_map_where_it_was_made(name):
    """z, y and x of the map are z, y and x of the image."""
    model = build_model(name, **SMALL).eval()
    image = images(64, 64, 64, batch=1)
    changed = image.clone()
    place = (12, 28, 52)
    changed[0, 0, 11:14, 27:30, 51:54] += 5
    with torch.no_grad():
        output = model(image)
        change = (model(changed).dense - output.dense).abs().sum((0, 1))
    cell = torch.tensor([int(i) for i in torch.unravel_index(change.argmax(), change.shape)])
    centre = torch.tensor(output.stride_zyx) * cell + (torch.tensor(output.stride_zyx) - 1) / 2
    # Where a random network answers most is within its field of view, not in its middle.
    assert (centre - torch.tensor(place)).abs().max() <= max(output.stride_zyx[0], 8)


@pytest.mark.parametrize("name", PATCHES)
def test_training_starts_from_a_low_prior(name):
    logits = build_model(name)(images(32, 32, 32)).logits
    assert torch.sigmoid(logits).min() > 0.003
    assert torch.sigmoid(logits).max() < 0.2


@pytest.mark.parametrize("name", PATCHES)
def test_every_weight_gets_a_gradient(name):
    options = {"deep_supervision": True, "vessels": True} if name == "unet3d" else {}
    model = build_model(name, **SMALL, **options)
    output = model(images(32, 32, 32))
    loss = output.logits.sum() + sum(c.sum() for c in output.coarser)
    (loss if output.vessels is None else loss + output.vessels.sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", PATCHES)
def test_a_few_steps_learn_a_batch_by_heart(name):
    """A bright ball in one patch of two; what stands is that gradients lead somewhere."""
    image = images(32, 32, 32) * 0.1
    image[0, 0, 12:18, 14:20, 16:22] += 1
    targets = torch.zeros(2, 14)
    targets[0, [6, 13]] = 1
    model = build_model(name, **SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(image).logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.parametrize("name", PATCHES)
def test_mixed_precision_gives_what_full_precision_gives(name):
    model = build_model(name, **SMALL).eval()
    image = images(32, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(image).logits.float()
    with torch.no_grad():
        full = model(image).logits
    torch.testing.assert_close(half, full, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("name", PATCHES)
def test_channels_last_gives_the_same(name):
    model = build_model(name, **SMALL).eval()
    image = images(32, 32, 32)
    with torch.no_grad():
        expected = model(image).logits
        model.to(memory_format=torch.channels_last_3d)
        found = model(image.to(memory_format=torch.channels_last_3d)).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PATCHES)
def test_the_graph_can_be_traced_whole(name):
    """torch.compile's front end; its back ends need a compiler and a minute."""
    model = build_model(name, **SMALL).eval()
    image = images(32, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(image)
        expected = model(image)
    torch.testing.assert_close(compiled.logits, expected.logits)
    assert compiled.stride_zyx == expected.stride_zyx


@pytest.mark.parametrize("name", PATCHES)
def test_weights_come_back_from_a_file(name, tmp_path):
    model = build_model(name, **SMALL).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = build_model(name, **SMALL).eval()
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    image = images(32, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(image).logits, again(image).logits)


@pytest.mark.parametrize(
    "name, millions",
    [("resnet3d18", 33.2), ("resnet3d34", 63.5), ("resnet3d18-dense", 33.2), ("unet3d", 2.7), ("cnn3d", 0.05)],
)
def test_the_sizes_are_those_of_the_documentation(name, millions):
    with torch.device("meta"):
        model = build_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.05 if millions > 1 else 0.005
    )


def test_a_coarser_map_comes_in_training_only():
    model = build_model("unet3d", deep_supervision=True, vessels=True, **SMALL)
    image = images(32, 32, 64)
    output = check_output(model(image), image)
    assert [tuple(c.shape[2:]) for c in output.coarser] == [(16, 16, 32), (8, 8, 16)]
    assert check_output(model.eval()(image), image).coarser == ()
    assert output.vessels.shape == (2, 14, 32, 32, 64)
    assert build_model("unet3d", **SMALL)(image).vessels is None


@pytest.mark.parametrize("shape", [(32, 32, 40), (16, 32, 32)], ids=["no multiple of 16", "too small"])
def test_a_unet_refuses_what_it_can_not_halve_four_times(shape):
    with pytest.raises(UsageError, match="each edge is 32, 48"):
        build_model("unet3d", **SMALL)(images(*shape))
