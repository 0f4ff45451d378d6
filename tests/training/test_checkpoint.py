"""Checkpoints: what comes back from a file, and what is refused."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from random import Random

import pytest
import torch

from aneurysm import __version__
from aneurysm.cache.spec import load_spec
from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.labels import LABELS
from aneurysm.models.registry import build_model
from aneurysm.training.checkpoint import (
    load_checkpoint,
    model_entries,
    read_file,
    save_atomically,
    take_weights,
)
from aneurysm.training.config_file import load_config
from tests.inference.checkpoints import write_checkpoint
from tests.training.tiny import classifier

METRICS = {"score": 0.5, "present_auc": None, "site_auc": None, "loss": 0.25}
PREVALENCE = [0.1] * 12 + [None, 0.4]


def entries(**changes):
    model = build_model("resnet3d18", width=0.05)
    config = load_config(None, {"model_options.width": 0.05, "seed": 3}).resolved()
    return {
        **model_entries(model.state_dict(), config, load_spec("rsna-1mm"), 4, METRICS, PREVALENCE, ["CTA"]),
        **changes,
    }


@pytest.fixture(scope="module")
def content():
    return entries()


def test_it_comes_back_with_all_that_predicting_takes(content, tmp_path):
    save_atomically(content, tmp_path / "checkpoints" / "best.ckpt")
    found = load_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert found.spec == load_spec("rsna-1mm")
    assert (found.config.seed, found.config.model_options, found.epoch) == (3, {"width": 0.05}, 4)
    assert found.metrics == METRICS
    assert found.prevalence == tuple(PREVALENCE)
    raw = torch.load(found.path, weights_only=True)
    assert (raw["package_version"], raw["labels"]) == (__version__, list(LABELS))
    model = found.build_model()
    assert not model.training
    assert all(torch.equal(value, content["model"][name]) for name, value in model.state_dict().items())
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["best.ckpt"]


def test_a_file_may_not_name_code_to_be_run(content, tmp_path):
    config = {**content["config"], "model": "os:system"}
    save_atomically({**content, "config": config}, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match="there is no model 'os:system'"):
        load_checkpoint(tmp_path / "x.ckpt").build_model()


def test_one_from_before_prevalences_were_kept_can_be_read(content, tmp_path):
    save_atomically({k: v for k, v in content.items() if k != "prevalence"}, tmp_path / "x.ckpt")
    assert load_checkpoint(tmp_path / "x.ckpt").prevalence is None


@pytest.mark.parametrize(
    "spec, modalities, takes",
    [
        ("rsna-1mm", ["CTA", "MRA"], (True, False)),
        ("arrays-u8", ["unknown"], (False, True)),
        ("arrays-u8", ["CTA"], (True, False)),
        ("arrays-u8", ["CTA", "unknown"], (True, True)),
        ("rsna-1mm", None, (True, True)),
        ("arrays-u8", None, (False, True)),
    ],
)
def test_it_knows_which_kinds_of_series_it_was_trained_on(tmp_path, spec, modalities, takes):
    """Of checkpoints that don't say, those of a spec for plain arrays count as trained on such."""
    path = write_checkpoint(tmp_path / "x.ckpt", 0, spec=spec, modalities=modalities)
    loaded = load_checkpoint(path)
    assert (loaded.takes_dicom, loaded.takes_plain_arrays) == takes


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def test_a_file_runs_no_code(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**content, "epoch": Evil()}, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match="is no checkpoint of aneurysm, or damaged"):
        load_checkpoint(tmp_path / "x.ckpt")
    (tmp_path / "y.ckpt").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UsageError, match="is no checkpoint of aneurysm, or damaged"):
        load_checkpoint(tmp_path / "y.ckpt")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        pytest.param({"format_version": 0}, "format_version is 0, not 1", id="version"),
        pytest.param(
            {"format_version": 2, "package_version": "9.1"},
            r"written by aneurysm 9\.1, in format 2.*takes a newer aneurysm",
            id="newer version",
        ),
        pytest.param({"labels": ["a", "b"]}, "trained on other labels: a, b", id="labels"),
        pytest.param(
            {"digest": "0", "package_version": "0.0.1"},
            r"on voxels of digest 0, by aneurysm 0\.0\.1; .* Use it with the version that wrote it, or train again",
            id="digest",
        ),
        pytest.param({"model": [1]}, "is damaged: AttributeError", id="no weights"),
        pytest.param({"model": {"a": 1}}, "is damaged: ValueError a is no tensor", id="weights that are none"),
        pytest.param({"epoch": float("inf")}, "is damaged: OverflowError", id="epoch"),
        pytest.param({"spec": "x = 1"}, "the spec in .*: ", id="spec"),
        pytest.param({"config": {"epoch": 1}}, "the configuration in .*: .*did you mean epochs", id="config"),
        pytest.param({"config": 3}, "is damaged", id="no config"),
        pytest.param({"metrics": None}, "is damaged", id="no metrics"),
        pytest.param({"prevalence": [0.1, 0.2]}, "is damaged: ValueError prevalence is", id="prevalence"),
    ],
)
def test_contradictions_are_refused(content, tmp_path, changes, words):
    save_atomically({**content, **changes}, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match=words):
        load_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("text", [b"", b"no checkpoint", b"\x80\x02.", b"PK\x03\x04" + bytes(100)])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.ckpt").write_bytes(text)
    with pytest.raises(UsageError, match="is no checkpoint of aneurysm"):
        read_file(tmp_path / "x.ckpt")


def test_a_file_that_is_cut_short_or_has_wrong_bytes_is_refused_or_read(tmp_path):
    path, damaged, random = tmp_path / "x.ckpt", tmp_path / "y.ckpt", Random(0)
    config = load_config(None, {}).resolved()
    save_atomically(
        model_entries(classifier(1).state_dict(), config, load_spec("rsna-1mm"), 4, {}, PREVALENCE, ["CTA"]), path
    )
    whole = path.read_bytes()
    pickled = whole.index(b"archive/data/0")  # the dict comes first, then the tensors
    refused = 0
    for turn in range(300):
        content = bytearray(whole)
        if turn % 10 == 0:
            del content[random.randrange(len(content)) :]
        else:
            content[random.randrange(64, pickled)] ^= 1 << random.randrange(8)
        damaged.write_bytes(content)
        try:
            load_checkpoint(damaged)
        except UsageError:
            refused += 1
    assert refused > 100


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match="format_version is None"):
        read_file(tmp_path / "x.ckpt")


def test_weights_of_another_model_are_told(content, tmp_path):
    config = {**content["config"], "model_options": {"width": 0.1}}
    save_atomically({**content, "config": config}, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match="the weights don't fit the model 'resnet3d18'"):
        load_checkpoint(tmp_path / "x.ckpt").build_model()


FULL = """
import resource, sys
from pathlib import Path
import torch
from aneurysm.errors import NoSpaceError
from aneurysm.training.checkpoint import save_atomically
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
save_atomically({"model": torch.zeros(1000)}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    save_atomically({"model": torch.zeros(10_000_000)}, path)
except NoSpaceError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_one_before(tmp_path):
    """A limit on the size of files stands in for it: torch's own writer meets the error."""
    path = tmp_path / "last.ckpt"
    ran = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, timeout=60, check=False)
    assert f"the checkpoint can't be saved; {path} is still the one before" in ran.stdout, ran.stderr
    assert torch.load(path, weights_only=True)["model"].shape == (1000,)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert issubclass(NoSpaceError, OSError)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1_000_000


def test_what_fits_is_taken_to_begin_with():
    model, other = classifier(1), classifier(2)
    assert take_weights(model, other.state_dict()) == len(model.state_dict()) - 1
    assert torch.equal(model.head.weight, other.head.weight)
    with pytest.raises(UsageError, match="none of the 1 tensors to begin from fits the model"):
        take_weights(model, {"head.weight": torch.zeros(3)})
