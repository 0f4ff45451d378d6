"""Losses are read now and then; one that is no number ends the run, and names step and series."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aneurysm.errors import DivergedError
from aneurysm.training.loss_watch import LossWatch
from aneurysm.training.timed_loader import MicroBatch
from tests.support.batches import make_batch
from tests.support.train_runs import quick


@pytest.fixture
def step() -> MicroBatch:
    """The second of the two batches of a step, with patches of three series."""
    batch = make_batch(torch.zeros(3, 1, 4, 4, 4, dtype=torch.int16))
    batch = replace(batch, series_uid=("1.1", "1.2", "1.3"))
    return MicroBatch((batch, batch), 1)


def losses(loss: float, bce: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss, requires_grad=True), "bce": torch.tensor(bce)}


def test_shares_of_a_step_become_means_and_are_read_at_the_first_and_every_third(train_cache, step):
    watch = LossWatch(quick(train_cache), 3)
    latest = []
    for number in range(7):
        watch.add(0, number, step, losses(number / 2, 1.0))
        latest.append(watch.latest)
    assert latest == [0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 5.0]
    assert watch.means() == {"loss": 3.0, "bce": 2.0}
    other = LossWatch(quick(train_cache), 3)
    other.load_state_dict(watch.state_dict())
    assert other.means() == watch.means()
    watch.restart()
    assert watch.means() == {}


def test_a_loss_that_is_no_number_names_epoch_step_and_series(train_cache, step):
    watch = LossWatch(quick(train_cache), 2)
    watch.add(1, 4, step, losses(1.0, 1.0))
    watch.add(1, 5, step, losses(torch.inf, 1.0))
    words = (
        r"not finite in epoch 2 at step 6 \(loss inf, bce 2\), with patches of the series 1\.1, 1\.2, 1\.3: "
        r"try a lower learning rate than 0\.01$"
    )
    with pytest.raises(DivergedError, match=words):
        watch.add(1, 6, step, losses(1.0, 1.0))


def test_intensities_that_are_no_numbers_are_told_by_their_series(train_cache, step):
    batch = replace(step.batch, scale=torch.tensor([1.0, torch.nan, 1.0]))
    watch = LossWatch(quick(train_cache), 1)
    with pytest.raises(DivergedError, match=r"series 1\.2: their intensities are not finite: run aneurysm verify"):
        watch.add(0, 0, MicroBatch((batch,), 0), losses(torch.nan, torch.nan))
