"""That a run that was stopped anywhere and goes on ends with the same bits as one that was not."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from aneurysm.errors import InterruptedRunError, SpecMismatchError, UsageError
from aneurysm.report.run import read_run
from aneurysm.training import checkpoint
from aneurysm.training.checkpoint import load_checkpoint, read_file
from aneurysm.training.config_file import read_resolved
from aneurysm.training.fit import fit
from aneurysm.training.progress import Silent
from aneurysm.training.run_folder import RunFolder
from tests.support.noise_cache import add_volume, finish_cache
from tests.support.train_runs import assert_same, make_cache, quick, table, timeless

pytestmark = pytest.mark.timeout(120)

LEARNT = ("model", "state_dict", "optimizer", "scaler", "loader", "loop", "epoch", "global_step", "metrics")


class Stops(Silent):
    """Sends this process a signal after a step, or after a series of validation."""

    def __init__(self, *, step=None, validating=None, number=signal.SIGTERM):
        self.at_step, self.at_series, self.number = step, validating, number

    def step(self, facts):
        if self.at_step == (facts.epoch, facts.step):
            os.kill(os.getpid(), self.number)

    def validating(self, done, total, window, windows):
        if self.at_series == done:
            self.at_series = None
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    "stop, options",
    [
        pytest.param({"step": (2, 2)}, {}, id="in the second epoch"),
        pytest.param({"step": (1, 1)}, {"workers": 1}, id="after the first step, and on with a worker"),
        pytest.param({"step": (1, 4)}, {}, id="after an epoch's last step"),
        pytest.param({"step": (2, 4)}, {}, id="after the last step of all"),
        pytest.param({"validating": 2}, {}, id="in validation"),
        pytest.param({"step": (1, 3), "number": signal.SIGINT}, {}, id="by Ctrl-C"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_run_that_was_stopped_goes_on_to_the_bit(train_cache, straight, tmp_path, stop, options):
    folder = RunFolder(tmp_path / "run")
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError) as told:
        fit(quick(train_cache), folder, progress=Stops(**stop))
    assert told.value.signal_number == stop.get("number", signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    torch.rand(7)  # whatever happened to the generator in between
    summary = fit(quick(train_cache, **options), folder, resume=True)
    assert summary.epochs == 2
    one, two = read_file(straight.last), read_file(folder.last)
    for key in LEARNT:
        assert_same(one[key], two[key], key)
    assert timeless(table(folder.metrics)) == timeless(table(straight.metrics))
    assert_same(load_checkpoint(folder.best).weights, load_checkpoint(straight.best).weights)
    assert folder.predictions.read_text() == straight.predictions.read_text()


def test_accumulated_gradients_are_not_cut_by_a_stop(train_cache, tmp_path):
    config = quick(train_cache, steps_per_epoch=5, optimizer__accumulate=2)
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    fit(config, one)
    with pytest.raises(InterruptedRunError):
        fit(config, two, progress=Stops(step=(2, 1)))
    assert read_file(two.last)["loader"]["step"] == 2
    fit(config, two, resume=True)
    left, right = read_file(one.last), read_file(two.last)
    assert left["global_step"] == 6
    for key in LEARNT:
        assert_same(left[key], right[key], key)


@pytest.mark.parametrize("accumulate, saved_step", [(1, 3), (2, 4)])
def test_a_run_whose_power_failed_goes_on_from_within_the_epoch(train_cache, tmp_path, accumulate, saved_step):
    class PowerFails(Silent):
        def step(self, facts):
            if (facts.epoch, facts.step) == (2, 5):
                raise SystemError("no power")

    config = quick(train_cache, steps_per_epoch=6, save_every=3, optimizer__accumulate=accumulate)
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    fit(config, one)
    with pytest.raises(SystemError):
        fit(config, two, progress=PowerFails())
    there = read_file(two.last)
    assert (there["epoch"], there["loader"]["step"]) == (1, saved_step)
    fit(config, two, resume=True)
    left, right = read_file(one.last), read_file(two.last)
    for key in LEARNT:
        assert_same(left[key], right[key], key)
    assert timeless(table(one.metrics)) == timeless(table(two.metrics))


def test_a_run_that_is_through_has_nothing_to_do_but_can_be_made_longer(train_cache, tmp_path, monkeypatch):
    reads = []  # of a checkpoint, which takes seconds
    check_archive = checkpoint.check_archive
    monkeypatch.setattr(
        checkpoint, "check_archive", lambda file: reads.append(Path(file.name).name) or check_archive(file)
    )
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache, epochs=1), folder)
    before = folder.last.read_bytes()
    assert fit(quick(train_cache, epochs=1), folder, resume=True).epochs_now == 0
    assert folder.last.read_bytes() == before
    reads.clear()
    assert fit(quick(train_cache, epochs=2), folder, resume=True).epochs_now == 1
    assert reads == ["last.ckpt", "best.ckpt"]
    assert [r["epoch"] for r in table(folder.metrics)] == ["1", "2"]


def test_what_was_changed_when_a_run_went_on_stands_in_its_configuration(train_cache, tmp_path):
    """What the printed command, which names the folder alone, goes on with; and evaluate reads."""
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache, epochs=1), folder)
    moved = tmp_path / "moved"
    moved.symlink_to(train_cache.root)
    longer = quick(train_cache, epochs=4).model_copy(update={"cache": str(moved)})
    with pytest.raises(InterruptedRunError):
        fit(longer, folder, resume=True, progress=Stops(step=(3, 2)))
    config = read_resolved(folder.config)
    assert (config.epochs, config.cache) == (4, str(moved))
    assert fit(config, folder, resume=True).epochs_now == 2
    assert read_run(folder.root).cache == str(moved)


def test_what_can_t_be_gone_on_with_changes_nothing(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache), folder)
    before = folder.config.read_text()
    with pytest.raises(UsageError, match="has 2 epochs behind it: it can't have 1"):
        fit(quick(train_cache, epochs=1), folder, resume=True)
    with pytest.raises(UsageError, match="batch_size 4, now 2: it would go on with other patches"):
        fit(quick(train_cache, batch_size=2), folder, resume=True)
    folder.last.write_bytes(folder.best.read_bytes())
    with pytest.raises(UsageError, match=r"has weights alone, and nothing to go on from"):
        fit(quick(train_cache, epochs=4), folder, resume=True)
    assert folder.config.read_text() == before


def test_changed_folds_are_not_gone_on_with_but_a_spreadsheet_may_save_them(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = quick(train_cache, epochs=1, folds=4, test_fold=1)
    fit(config, folder)
    before = folder.folds.read_text()
    # A patient who was held out and one who was kept for the test change places: what is trained on stays.
    rows = [line.split(",") for line in before.splitlines()]
    one, two = (next(row for row in rows if row[2] == fold) for fold in "01")
    one[2], two[2] = two[2], one[2]
    folder.folds.write_text("".join(f"{','.join(row)}\n" for row in rows))
    with pytest.raises(UsageError, match=r"folds\.csv has other folds than when the run was saved"):
        fit(config, folder, resume=True)
    header, *lines = before.replace(",", ";").splitlines()
    folder.folds.write_text("\ufeff" + "\r\n".join([header, *reversed(lines)]) + "\r\n")
    assert fit(config, folder, resume=True).epochs == 1


def test_a_cache_of_another_spec_or_with_other_series_is_not_gone_on_with(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache, epochs=1), folder)
    fewer = make_cache(tmp_path / "fewer", 11)
    with pytest.raises(UsageError, match=r"has other series than when the run began \(1 came or went, as 1\.11\)"):
        fit(quick(fewer), folder, resume=True)
    finer = tmp_path / "finer"
    add_volume(finer, "1.0", shape=(30, 30, 30), spec="rsna-head-0.5mm", sites=(4,))
    with pytest.raises(SpecMismatchError, match="was trained on a cache of digest"):
        fit(quick(finish_cache(finer, "rsna-head-0.5mm")), folder, resume=True)


@pytest.mark.parametrize("part", ["optimizer", "state_dict", "loop", "global_step"])
def test_a_damaged_state_of_the_run_is_told_and_what_to_begin_from(train_cache, straight, tmp_path, part):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(straight.root, folder.root)
    content = read_file(folder.last)
    checkpoint.save_atomically(content | {part: {"a": torch.zeros(3)}}, folder.last)
    with pytest.raises(
        UsageError, match=r"its state of the run is damaged \(.*\)\. Begin a new run with --init .*best"
    ):
        fit(quick(train_cache, epochs=4), folder, resume=True)
