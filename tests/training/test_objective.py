import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.labels import UNKNOWN_VESSEL
from aneurysm.models.output import ModelOutput
from aneurysm.models.registry import build_model
from aneurysm.training.dense_losses import top_k_bce, tversky_bce, vessel_channels
from aneurysm.training.losses import bce, consistency
from aneurysm.training.objective import TERMS, Objective

TARGETS = torch.zeros(2, 14)
TARGETS[0, [3, 13]] = 1
IGNORE = torch.zeros(2, 14, dtype=torch.bool)
IGNORE[1, 4] = True


def output(**changes) -> ModelOutput:
    generator = torch.Generator().manual_seed(0)
    logits, dense = torch.randn(2, 14, generator=generator), torch.randn(2, 14, 4, 4, 4, generator=generator)
    return ModelOutput(logits, dense)._replace(**changes)


def lesions() -> torch.Tensor:
    dense = torch.zeros(2, 14, 4, 4, 4)
    dense[0, [3, 13], 1, 2, 3] = 1
    return dense


def test_the_loss_is_the_weighted_sum_of_its_terms():
    found = Objective({"bce": 2, "consistency": 0.5, "dense_dice": 0})(output(), TARGETS, IGNORE)
    assert set(found) == {"loss", "bce", "consistency"}
    torch.testing.assert_close(found["bce"], bce(output().logits, TARGETS, IGNORE))
    torch.testing.assert_close(found["consistency"], consistency(output().logits, IGNORE))
    torch.testing.assert_close(found["loss"], 2 * found["bce"] + 0.5 * found["consistency"])


def test_pos_weight_reaches_the_cross_entropy():
    weight = torch.full((14,), 4.0)
    found = Objective({"bce": 1}, pos_weight=weight)(output(), TARGETS, IGNORE)
    torch.testing.assert_close(found["loss"], bce(output().logits, TARGETS, IGNORE, pos_weight=weight))


def test_a_coarser_level_counts_half_as_much():
    coarse = output().dense[..., :2, :2, :2] * 3
    found = Objective({"dense_top_k": 1})(output(coarser=(coarse,)), TARGETS, IGNORE, dense=lesions())
    small = torch.zeros(2, 14, 2, 2, 2)
    small[0, [3, 13], 0, 1, 1] = 1
    fine = top_k_bce(output().dense, lesions(), IGNORE)
    torch.testing.assert_close(found["loss"], (fine + top_k_bce(coarse, small, IGNORE) / 2) / 1.5)


def test_a_lesion_without_a_place_is_not_taught_as_an_empty_map():
    unmapped = torch.zeros(2, 14, dtype=torch.bool)
    unmapped[1, 13] = True
    objective = Objective({"bce": 1, "dense_top_k": 1})
    found = objective(output(), TARGETS, IGNORE, dense=lesions(), unmapped=unmapped)
    torch.testing.assert_close(found["dense_top_k"], top_k_bce(output().dense, lesions(), IGNORE | unmapped))
    torch.testing.assert_close(found["bce"], bce(output().logits, TARGETS, IGNORE))


def test_only_patches_with_a_vessel_mask_teach_vessels():
    vessels = torch.randint(0, 14, (2, 1, 4, 4, 4), dtype=torch.uint8)
    logits = output().dense
    model = output(vessels=logits)
    found = Objective({"vessels": 1})(model, TARGETS, IGNORE, vessels=vessels, has_vessels=torch.tensor([False, True]))
    kept = torch.zeros(1, 14, dtype=torch.bool)
    torch.testing.assert_close(found["loss"], tversky_bce(logits[1:], vessel_channels(vessels[1:]), kept))


def test_vessels_of_unknown_site_teach_that_there_is_a_vessel_and_nothing_of_sites():
    vessels = torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)
    vessels[0, 0, :2] = UNKNOWN_VESSEL
    logits = output().dense[:1].clone().requires_grad_()
    objective = Objective({"vessels": 1})
    loss = objective(
        output(vessels=logits), TARGETS[:1], IGNORE[:1], vessels=vessels, has_vessels=torch.tensor([True])
    )["loss"]
    loss.backward()
    assert (logits.grad[:, :13] == 0).all()
    expected = tversky_bce(logits[:, 13:], vessels > 0, torch.zeros(1, 1, dtype=torch.bool))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("term", TERMS)
def test_each_term_trains_the_unet(term):
    model = build_model("unet3d", width=0.25, deep_supervision=True, vessels=True)
    dense = torch.zeros(2, 14, 32, 32, 32)
    dense[0, [3, 13], 10:14, 10:14, 20:24] = 1
    vessels = torch.randint(0, 14, (2, 1, 32, 32, 32), dtype=torch.uint8)
    found = Objective({term: 1.0})(
        model(torch.rand(2, 1, 32, 32, 32)), TARGETS, IGNORE,
        dense=dense, vessels=vessels, has_vessels=torch.tensor([True, False]),
    )  # fmt: skip
    found["loss"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    "weights, words",
    [
        ({"bse": 1}, "no loss 'bse'. Did you mean bce"),
        ({"bce": -1}, "weight of the loss 'bce' is -1"),
        ({"bce": float("nan")}, "is nan"),
        ({"bce": 0}, "no loss has a weight"),
        ({}, "no loss has a weight"),
    ],
    ids=str,
)
def test_weights_that_make_no_sense_are_refused(weights, words):
    with pytest.raises(UsageError, match=words):
        Objective(weights)


@pytest.mark.parametrize(
    "term, model, batch, words",
    [
        ("dense_dice", {"dense": None}, {"dense": lesions()}, "the model has no lesion map"),
        ("dense_dice", {}, {}, "the batch has no lesion map"),
        ("vessels", {}, {}, "the model has no vessel head"),
        ("vessels", {"vessels": lesions()}, {}, "the batch has no vessel masks"),
    ],
)
def test_what_a_term_lacks_is_named(term, model, batch, words):
    with pytest.raises(UsageError, match=words):
        Objective({term: 1})(output(**model), TARGETS, IGNORE, **batch)
