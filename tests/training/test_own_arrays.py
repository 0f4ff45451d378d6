"""Volumes with one binary label, end to end: what docs/own_arrays.md says to type runs, and learns."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from aneurysm import CacheWriter
from aneurysm.cache.cache import Cache, open_cache
from aneurysm.labels import LABELS
from aneurysm.models.registry import build_model
from aneurysm.patches.loader import PatchLoader
from aneurysm.patches.views.view import Box
from aneurysm.report import evaluation, page
from aneurysm.report.bootstrap import patient_weights
from aneurysm.training.module import PatchModule
from aneurysm.training.timed_loader import MicroBatch
from tests.support.acquisition import acquire
from tests.support.cache_paths import volume_paths
from tests.support.command import call_cli, environment
from tests.support.pattern import lone_blob
from tests.support.run_data import ROOT
from tests.support.series import write_series
from tests.support.train_runs import quick

PAGE = (ROOT / "docs" / "own_arrays.md").read_text()
PRESENT = LABELS[-1]

pytestmark = pytest.mark.timeout(240)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> Path:
    """A folder in which the page was followed, from its first command to its last."""
    work = tmp_path_factory.mktemp("typed")
    (work / "examples").symlink_to(ROOT / "examples")
    commands = re.findall(r"^    ((?:python|aneurysm) .*)", PAGE, re.MULTILINE)
    assert [command.split()[1] for command in commands] == [
        "examples/own_arrays.py", "verify", "info", "train", "evaluate", "evaluate",
    ]  # fmt: skip
    # What is drawn is tested elsewhere, and takes seconds.
    with (
        mock.patch.object(page, "draw_plots", return_value=[]),
        mock.patch.object(evaluation, "patient_weights", lambda p, _, seed: patient_weights(p, 50, seed)),
    ):
        for command in commands:
            program, *words = shlex.split(command)
            if program == "python":
                subprocess.run([sys.executable, *words], check=True, cwd=work, env=environment(), timeout=100)
                continue
            ran = call_cli(*words, cwd=work)
            assert ran.code == 0, ran.text
    return work


def test_it_learns_to_tell_held_out_bulges(typed):
    metrics = rows(typed / "runs/patches28/metrics.csv")[-1]
    assert float(metrics["present_auc"]) > 0.85
    assert (metrics["score"], metrics["site_auc"]) == ("", "")
    measured = json.loads((typed / "runs/patches28/evaluation/metrics.json").read_text())["labels"]
    assert measured[PRESENT]["auc"]["value"] > 0.85
    assert [name for name in LABELS if measured[name]["auc"]["value"] is not None] == [PRESENT]


def test_it_has_no_answer_for_dicom(typed, tmp_path):
    write_series(tmp_path / "1.2.3", acquire("axial"), lone_blob((0, 0, 0)), uid="1.2.3")
    ran = call_cli("predict", typed / "runs/patches28", tmp_path / "1.2.3", cwd=tmp_path)
    assert ran.code == 2
    assert "trained on plain arrays, without a modality (spec 'arrays-u8')" in ran.text
    cached = volume_paths(typed / "cache28")[0]
    assert call_cli("predict", typed / "runs/patches28", cached, cwd=tmp_path).code == 0


def test_the_test_is_in_neither_part_and_is_evaluated_by_itself(typed):
    folds = rows(typed / "folds28.csv")
    held_out = {r["series_uid"] for r in rows(typed / "runs/patches28/predictions_val.csv")}
    assert held_out == {r["series_uid"] for r in folds if r["fold"] == "1"}
    tested = rows(typed / "runs/patches28/test/predictions/patches28/predictions_val.csv")
    assert {r["series_uid"] for r in tested} == {r["series_uid"] for r in folds if r["fold"] == "2"}
    measured = json.loads((typed / "runs/patches28/test/metrics.json").read_text())["labels"]
    assert measured[PRESENT]["auc"]["value"] > 0.85


def test_the_first_block_makes_a_cache(tmp_path):
    with chdir(tmp_path):
        (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
        exec(compile(block, "docs/own_arrays.md", "exec"), {})
    cache = open_cache(tmp_path / "cache-mine")
    assert cache.labels[:, 13].tolist() == [0, 1, 0, 1]
    assert len(set(cache.patient_keys)) == 2


def test_given_arrays_and_splits_are_taken(tmp_path):
    """A file as MedMNIST's: labels (n, 1), splits of several sizes."""
    rng = np.random.default_rng(0)
    content, images = {}, {}
    for split, n in (("train", 3), ("val", 2), ("test", 1)):
        images[split] = content[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28, 28), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(n, dtype=np.uint8) % 2)[:, None]
    np.savez(tmp_path / "mine.npz", **content)
    command = [sys.executable, ROOT / "examples/own_arrays.py", "mine.npz", "--cache", "c", "--folds", "f.csv"]
    for _ in range(2):
        subprocess.run(command, check=True, cwd=tmp_path, env=environment(), timeout=100)
    cache = open_cache(tmp_path / "c")
    assert cache.uids == ["test-00000", "train-00000", "train-00001", "train-00002", "val-00000", "val-00001"]
    assert cache.labels[:, 13].tolist() == [0, 0, 1, 0, 0, 1]
    assert np.array_equal(cache[2].read((0, 0, 0), (28, 28, 28)), images["train"][1])
    assert [r["fold"] for r in rows(tmp_path / "f.csv")] == ["2", "0", "0", "0", "1", "1"]


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory) -> Cache:
    """Eight volumes of 16 voxels a side, every other one with an aneurysm."""
    root = tmp_path_factory.mktemp("sixteen")
    with CacheWriter(root) as writer:
        for i in range(8):
            writer.add(f"a{i}", np.full((16, 16, 16), 25 * i, np.uint8), labels={PRESENT: i % 2})
    return open_cache(root)


def step(cache: Cache, volumes: list[int], losses: dict[str, float]) -> tuple[PatchModule, dict[str, torch.Tensor]]:
    """The losses of the first step with patches that hold whole volumes."""
    config = quick(cache, model="cnn3d", losses=losses)
    module = PatchModule(build_model("cnn3d"), config, Box(config.patch))
    (batch,) = PatchLoader(cache, volumes=volumes, patch=(16, 16, 16), batch_size=len(volumes), steps=1)
    assert batch.targets[:, 13].tolist() == [float(uid[1] in "1357") for uid in batch.series_uid]
    return module, module(MicroBatch((batch,), 0))


@pytest.mark.parametrize("losses", [{"bce": 1.0}, {"bce": 1.0, "dense_top_k": 1.0, "consistency": 0.1}])
def test_outputs_of_labels_that_nobody_knows_are_not_taught(sixteen, losses):
    module, found = step(sixteen, list(range(8)), losses)
    found["loss"].backward()
    by_output = module.model.head.weight.grad.flatten(1).abs().sum(1)
    assert by_output[:13].tolist() == [0.0] * 13
    assert by_output[13] > 0


def test_no_map_is_taught_where_the_lesion_has_no_place(sixteen):
    _, of_positives = step(sixteen, [1, 3, 5, 7], {"bce": 1.0, "dense_top_k": 1.0})
    assert of_positives["dense_top_k"] == 0 < of_positives["bce"]
    _, of_negatives = step(sixteen, [0, 2, 4, 6], {"bce": 1.0, "dense_top_k": 1.0})
    assert of_negatives["dense_top_k"] > 0
