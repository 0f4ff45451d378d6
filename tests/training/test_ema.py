"""The mean of the weights, the losses that are read, the waiting that is counted, the signal that is noticed."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from aneurysm.patches.loader import PatchLoader
from aneurysm.training.ema import Ema
from aneurysm.training.ranks import gathered
from aneurysm.training.stop_signal import StopSignal
from aneurysm.training.timed_loader import TimedBatches
from tests.support.tiny import classifier


def stepped(ema: Ema, model: torch.nn.Module, values: list[float]) -> None:
    for steps, value in enumerate(values, 1):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.fill_(value)
        ema.update(model, steps)


def test_the_mean_follows_closely_at_first_then_with_its_decay():
    model = classifier(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0)
    ema = Ema(model, 0.9)
    values = [float(i % 7) for i in range(200)]
    stepped(ema, model, values)
    mean = 0.0
    for t, value in enumerate(values, 1):
        d = min(0.9, (1 + t) / (10 + t))
        mean = d * mean + (1 - d) * value
    for name, tensor in ema.model.state_dict().items():
        expected = values[-1] if name.endswith("num_batches_tracked") else mean
        assert tensor.flatten()[0].item() == pytest.approx(expected, rel=1e-4), name
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training


def test_without_decay_the_mean_is_the_weights():
    model = classifier(1)
    ema = Ema(model, 0.0)
    stepped(ema, model, [1.0, 5.0])
    assert all((tensor == 5).all() for tensor in ema.model.state_dict().values())


def test_waiting_for_data_is_counted_and_work_is_not(train_cache, monkeypatch):
    loader = PatchLoader(train_cache, volumes=range(12), patch=(8, 8, 8), batch_size=2, steps=5)
    slow = loader.dataset.__getitems__

    def read(draws):
        time.sleep(0.05)
        return slow(draws)

    monkeypatch.setattr(type(loader.dataset), "__getitems__", lambda _self, draws: read(draws))
    batches = TimedBatches(loader, torch.device("cpu"))
    batches.restart()
    for _ in batches:
        time.sleep(0.05)
    assert 0.25 <= batches.idle_s < 0.6
    assert 0.3 < batches.idle_share < 0.7
    assert batches.patches == 10
    assert batches.patches_per_s == pytest.approx(10 / batches.elapsed_s, rel=0.1)
    batches.restart()
    assert (batches.patches, batches.idle_s) == (0, 0)


def test_the_first_signal_is_noted_and_the_second_ends_the_process():
    stop = StopSignal()
    before = signal.getsignal(signal.SIGINT)
    with stop.caught():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wanted == signal.SIGTERM
        assert stop.agree(torch.device("cpu")) == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # as a batch system sends it to all, and the parent passes it on
        with pytest.raises(SystemExit, match="130"):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_one_process_gathers_from_itself():
    assert gathered("x") == ["x"]
