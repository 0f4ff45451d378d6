"""What an epoch leaves beside checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from aneurysm.training.epoch_files import EpochFiles
from aneurysm.training.run_folder import RunFolder


@pytest.fixture
def files(tmp_path):
    """Of a run that has two epochs of ten steps behind it."""
    cache = SimpleNamespace(modalities=["CTA", "MRA"])
    split = SimpleNamespace(val=[0, 1], folds=np.zeros(2, int))
    files = EpochFiles(RunFolder(tmp_path), cache, split, ["bce"], 2, 10, workers=3)
    yield files
    files.close()


def test_tensorboard_reads_the_curves(files, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epoch in (3, 4):
        row = {"epoch": epoch, "step": 10 * epoch, "loss": 1 / epoch, "loss: bce": 0.5, "idle_share": 0.0}
        files.add(row | {"score": None, "train_s": 1.0}, None, None)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["epoch/idle_share", "epoch/loss", "epoch/train_s", "loss/bce"]
    losses = events.Scalars("epoch/loss")
    assert [event.step for event in losses] == [30, 40]
    assert [event.value for event in losses] == pytest.approx([1 / 3, 1 / 4])


@pytest.mark.parametrize("idle_share, train_s, warns", [(0.5, 60.0, True), (0.01, 60.0, False), (0.5, 5.0, False)])
def test_a_device_that_waits_for_data_is_told_of(files, caplog, idle_share, train_s, warns):
    files.add({"epoch": 3, "step": 30, "loss": 0.5, "idle_share": idle_share, "train_s": train_s}, None, None)
    waited = [r.getMessage() for r in caplog.records if "the device waited for data 50 %" in r.getMessage()]
    assert bool(waited) == warns
    assert all("--workers (now 3)" in message for message in waited)
