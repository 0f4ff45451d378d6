"""What ends a run: it is told, and what was saved stays."""

from __future__ import annotations

import shutil

import pytest
import torch

from aneurysm.errors import (
    CacheError,
    DeviceMemoryError,
    DivergedError,
    LoaderError,
    NoSpaceError,
    UsageError,
)
from aneurysm.models.output import ModelOutput
from aneurysm.training.fit import fit
from aneurysm.training.progress import Silent, StepFacts
from aneurysm.training.run_folder import RunFolder
from aneurysm.training.split import split_series
from tests.support.cache_paths import volume_path
from tests.support.train_runs import make_cache, quick, table, timeless

pytestmark = pytest.mark.timeout(120)


def test_a_loss_that_is_no_number_ends_the_run_and_names_series_and_step(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(DivergedError, match=r"epoch 1 at step 1 .* series 1\.\d+.*: try a lower learning rate"):
        fit(quick(train_cache, model="tests.support.tiny:broken"), folder)
    assert not folder.last.exists()
    assert "ended by DivergedError" in folder.log.read_text()


def test_the_last_good_checkpoint_stays(train_cache, straight, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache, epochs=1), folder)
    before = folder.last.read_bytes()
    monkeypatch.setattr("tests.support.tiny.Tiny.forward", infinite)
    with pytest.raises(DivergedError, match="epoch 2"):
        fit(quick(train_cache, epochs=2), folder, resume=True)
    assert folder.last.read_bytes() == before


def test_a_folder_with_a_run_is_refused(train_cache, straight, tmp_path):
    with pytest.raises(UsageError, match=r"holds a run\. Go on with it: --out .* --resume"):
        fit(quick(train_cache), straight)
    with pytest.raises(UsageError, match="holds a run"):  # before anything is read
        fit(quick(train_cache).model_copy(update={"cache": "nowhere"}), straight)
    (tmp_path / "config.toml").write_bytes(straight.config.read_bytes())
    with pytest.raises(UsageError, match=r"holds a run\. It was never saved: remove it; or name another"):
        fit(quick(train_cache), RunFolder(tmp_path))


def test_a_damaged_volume_ends_validation_and_the_run_goes_on_with_it(tmp_path, straight):
    cache = make_cache(tmp_path)
    config = quick(cache)
    uid = held_out(cache, 0)[0]
    chunk = volume_path(tmp_path, uid) / "0/c/0/0/0"
    content = chunk.read_bytes()
    chunk.write_bytes(bytes(len(content)))
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(CacheError, match=f"validation can't go on: .*{uid}"):
        fit(config, folder)
    chunk.write_bytes(content)
    fit(config, folder, resume=True)
    assert timeless(table(folder.metrics)) == timeless(table(straight.metrics))


def test_a_cache_that_is_replaced_by_another_one_ends_the_run(tmp_path):
    """Of the same spec, series, labels and shapes: by nothing but the voxels it can be told."""
    cache = make_cache(tmp_path / "cache")

    class Replaces(Silent):
        def step(self, facts: StepFacts) -> None:
            if facts.step == 2:
                shutil.rmtree(tmp_path / "cache")
                make_cache(tmp_path / "cache", seed=9)  # with which all handles are let go, as where there are many

    with pytest.raises(LoaderError, match=r"can't be read; the last: .* built again, or the cache replaced by another"):
        fit(quick(cache), RunFolder(tmp_path / "run"), progress=Replaces())


def test_a_full_disk_leaves_the_last_checkpoint(train_cache, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache, epochs=1), folder)
    before = folder.last.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aneurysm.training.checkpoint.torch.save", full)
    with pytest.raises(NoSpaceError, match=r"can't be saved; .* is still the one before"):
        fit(quick(train_cache, epochs=2), folder, resume=True)
    assert folder.last.read_bytes() == before
    assert sorted(p.name for p in folder.last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_full_disk_while_tables_are_written_is_told(train_cache, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aneurysm.training.metrics_table.MetricsTable.add", full)
    with pytest.raises(NoSpaceError, match=r"is full\. There is no checkpoint to go on from yet"):
        fit(quick(train_cache), RunFolder(tmp_path / "run"))


def test_a_disk_that_is_full_from_the_start_is_told_and_the_same_command_works_later(
    train_cache, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr("aneurysm.training.fit.write_folds", full)
        with pytest.raises(NoSpaceError, match=r"run is full\. Free some space, and give the command again"):
            fit(quick(train_cache, epochs=1), folder)
    assert fit(quick(train_cache, epochs=1), folder).epochs_now == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator")])
def test_out_of_memory_says_what_was_used_and_what_to_lower(train_cache, tmp_path, monkeypatch, error):
    def out_of_memory(self, image):
        raise error

    monkeypatch.setattr("tests.support.tiny.Tiny.forward", out_of_memory)
    with pytest.raises(DeviceMemoryError, match=r"of 4 patches of 16 x 16 x 16 voxels in fp32.*Lower --batch-size"):
        fit(quick(train_cache), RunFolder(tmp_path / "run"))


def infinite(self, image):
    return ModelOutput(self.head.bias.expand(len(image), 14) / 0)


def held_out(cache, fold: int) -> list[str]:
    return [cache.uids[i] for i in split_series(cache, quick(cache, fold=fold)).val]
