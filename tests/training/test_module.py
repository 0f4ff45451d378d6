"""One step of training is the same however its patches are cut into batches and ranks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from aneurysm.patches.batch import Batch
from aneurysm.patches.views.view import Box
from aneurysm.training import learner
from aneurysm.training.learner import Learner
from aneurysm.training.module import PatchModule
from aneurysm.training.objective import TERMS
from aneurysm.training.ranks import Ranks
from aneurysm.training.timed_loader import MicroBatch
from tests.support.batches import make_batch, part_of
from tests.support.tiny import everything
from tests.support.train_runs import quick

ALL = dict.fromkeys(TERMS, 1.0)
SHAPE = (16, 16, 16)


def patches() -> Batch:
    """
    Eight patches: lesions in two of the first four and in one of the others, two lesions without a place, vessel masks
    of three series, and labels that are not known, most of them in the last two patches.
    """
    generator = torch.Generator().manual_seed(0)
    unknown = torch.rand(8, 14, generator=generator) < torch.tensor([0.1] * 6 + [0.7, 1.0])[:, None]
    certain = torch.zeros(8, 14, dtype=torch.bool)
    certain[2, [4, 13]] = certain[6, [9, 13]] = True
    vessels = torch.randint(0, 30, (8, 1, *SHAPE), dtype=torch.uint8, generator=generator)
    vessels[vessels > 13] = 0
    has_vessels = torch.zeros(8, dtype=torch.bool)
    has_vessels[[1, 4, 5]] = True
    batch = make_batch(
        torch.randint(0, 1000, (8, 1, *SHAPE), dtype=torch.int16, generator=generator),
        lesions=[(0, 4, (8.0, 8.0, 8.0)), (3, 6, (6.0, 9.0, 7.0)), (3, 2, (12.0, 6.0, 5.0)), (5, 4, (7.0, 7.0, 9.0))],
        unknown=unknown, certain=certain, vessels=vessels,
    )  # fmt: skip
    return replace(batch, has_vessels=has_vessels)


def module_of(cache, losses, accumulate, **options) -> PatchModule:
    torch.manual_seed(0)
    config = quick(cache, patch=SHAPE, losses=losses, pos_weight=3.0, optimizer__accumulate=accumulate, **options)
    return PatchModule(everything(1), config, Box(config.patch))


def cut(batch: Batch, sizes) -> tuple[Batch, ...]:
    return tuple(part_of(batch, a, b) for a, b in pairwise(np.cumsum([0, *sizes]).tolist()))


def backward(module: PatchModule, step) -> dict[str, float]:
    """Add up the gradients of a step's batches; returns its terms."""
    found = []
    for number in range(len(step)):
        losses = module(MicroBatch(step, number))
        losses["loss"].backward()
        found.append({name: loss.item() for name, loss in losses.items() if name != "loss"})
    return {name: float(np.sum([losses[name] for losses in found])) for name in found[0]}


def gradients(module: PatchModule):
    return {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    assert any(g.abs().max() > 1e-4 for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("losses", [*({term: 1.0} for term in TERMS), ALL], ids=[*TERMS, "all"])
@pytest.mark.parametrize("sizes", [(4, 4), (2,) * 4, (1,) * 8, (3, 4, 1)], ids=str)
def test_micro_batches_add_up_to_the_step(train_cache, losses, sizes):
    whole, parts = module_of(train_cache, losses, 1), module_of(train_cache, losses, len(sizes))
    expected = backward(whole, (patches(),))
    assert backward(parts, cut(patches(), sizes)) == pytest.approx(expected, rel=1e-4)
    assert_close(gradients(parts), gradients(whole))


@pytest.mark.parametrize("batches", [1, 2])
def test_the_rest_of_an_epoch_steps_as_far_as_any_other(train_cache, batches):
    """Of four batches that make a step, one or two are left."""
    whole, rest = module_of(train_cache, ALL, 1), module_of(train_cache, ALL, 4)
    expected = backward(whole, (patches(),))
    assert backward(rest, cut(patches(), (8 // batches,) * batches)) == pytest.approx(expected, rel=1e-4)
    assert_close(gradients(rest), gradients(whole))


@pytest.mark.parametrize(
    "losses, leaves_out",
    [(ALL, False), ({"bce": 1.0}, True), ({"bce": 1.0, "vessels": 1.0}, False), ({"vessels": 1.0}, True)],
)
def test_it_is_known_whether_a_weight_is_taught_nothing(train_cache, losses, leaves_out, monkeypatch):
    """The logits are of the lesion map; the vessel head is one of its own."""
    module = module_of(train_cache, losses, 1)
    assert module.leaves_weights_out() == leaves_out
    module(MicroBatch((patches(),), 0))["loss"].backward()
    assert (gradients(module).keys() != dict(module.model.named_parameters()).keys()) == leaves_out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    replicas = []
    monkeypatch.setattr(learner, "DistributedDataParallel", lambda module, **kwargs: replicas.append(kwargs) or module)
    Learner(module, module.config, Ranks(size=2))
    assert [replica["find_unused_parameters"] for replica in replicas] == [leaves_out]


def test_ranks_add_up_to_the_step(train_cache, monkeypatch):
    """Two ranks, of two batches each: DDP takes the mean of their gradients."""
    expected = module_of(train_cache, ALL, 1)
    terms = backward(expected, (patches(),))
    first, second = (cut(part, (2, 2)) for part in cut(patches(), (4, 4)))
    counts = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: counts.append(count.clone()))
    for step in (first, second):
        backward(module_of(train_cache, ALL, 2), step)
    assert len(counts) == 2
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.copy_(sum(counts)))
    ranks = [module_of(train_cache, ALL, 2) for _ in range(2)]
    found = [backward(rank, step) for rank, step in zip(ranks, (first, second))]
    assert {name: (found[0][name] + found[1][name]) / 2 for name in terms} == pytest.approx(terms, rel=1e-4)
    both = [gradients(rank) for rank in ranks]
    assert_close({name: (both[0][name] + both[1][name]) / 2 for name in both[0]}, gradients(expected))


def test_a_micro_batch_of_which_nothing_is_known_adds_nothing(train_cache):
    known, batch = patches(), part_of(patches(), 6, 8)
    blank = replace(
        batch, unknown=torch.ones_like(batch.unknown), certain=torch.zeros_like(batch.certain),
        has_vessels=torch.zeros(2, dtype=torch.bool),
    )  # fmt: skip
    whole, parts = module_of(train_cache, ALL, 1), module_of(train_cache, ALL, 2)
    backward(whole, (known,))
    backward(parts, (known, blank))
    assert_close(gradients(parts), gradients(whole))
