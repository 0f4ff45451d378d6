"""Checkpoints: what comes back from a file, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from random import Random

import pytest
import torch

from aneurysm._version import __version__
from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.labels import LABELS
from aneurysm.models.registry import build_model
from aneurysm.spec import load_spec
from aneurysm.training.checkpoint import (
    load_checkpoint,
    model_entries,
    read_file,
    save_atomically,
    take_weights,
)
from aneurysm.training.config_file import load_config
from tests.support.checkpoints import write_checkpoint
from tests.support.specs import spec_text
from tests.support.tiny import classifier
from tests.support.train_runs import assert_same

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


def rewritten(source, target, change=lambda name, content: content, **options):
    """Write the members of a checkpoint again, changed, with checksums that are right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def pickled(source, target, content):
    """Put another pickle into a checkpoint."""
    return rewritten(source, target, lambda name, old: content if name.endswith("/data.pkl") else old)


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


class Calls:
    """What the pickle of a checkpoint calls when it is read."""

    def __init__(self, function, *args):
        self._called = (function, args)

    def __reduce__(self):
        return self._called


def a_prefix(small, path):
    """torch would read the older format at the beginning, Python the archive at the end."""
    old = io.BytesIO()
    torch.save({"format_version": 1, "model": {}}, old, _use_new_zipfile_serialization=False)
    path.write_bytes(old.getvalue() + small.read_bytes())


def many_members(small, path):
    with zipfile.ZipFile(path, "w") as new:
        for number in range(300):
            new.writestr(f"archive/data/{'x' * 60_000}{number}", b"")


def saved(content, path):
    torch.save({"format_version": 1, "model": {}, "epoch": content}, path)


NESTED = b"\x80\x02" + b"(" * 10_000 + b"."
HOSTILE = {
    "a command": lambda small, path: pickled(small, path, pickle.dumps(Evil(), protocol=2)),
    "a command by another opcode": lambda small, path: pickled(small, path, pickle.dumps(Evil(), protocol=4)),
    "memory by a call": lambda small, path: saved(Calls(bytearray, 10**12), path),
    "memory by a view": lambda small, path: saved(torch.zeros(1).expand(10**12), path),
    "memory by compression": lambda small, path: rewritten(
        small, path, lambda name, old: bytes(10**8) if name.endswith("/data/0") else old,
        compression=zipfile.ZIP_DEFLATED,
    ),
    "a size that is not there": lambda small, path: path.write_bytes(
        small.read_bytes().replace(struct.pack("<LL", 24, 24), struct.pack("<LL", 2**31, 2**31))
    ),
    "a pickle of 5 MB": lambda small, path: pickled(small, path, b"\x80\x02" + b"]" * 5_000_000 + b"."),
    "a pickle without an end": lambda small, path: pickled(small, path, NESTED),
    "no pickle": lambda small, path: rewritten(small, path, lambda name, old: b""),
    "a folder": lambda small, path: path.mkdir(),
    "a pipe": lambda small, path: os.mkfifo(path),
    "an older format before the archive": a_prefix,
    "18 MB of names": many_members,
    "a name outside": lambda small, path: rewritten(
        small, path, lambda name, old: old.replace(b"X\x01\x00\x00\x000", b"X\x07\x00\x00\x00../../0")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_clear_line_and_no_memory(small, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    HOSTILE[case](small, tmp_path / "x.ckpt")
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match=r"x\.ckpt (is no checkpoint of aneurysm, or damaged|is no file)") as refused:
        read_file(tmp_path / "x.ckpt")
    assert tracemalloc.get_traced_memory()[1] < 500e6
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500e3  # in kB
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
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
        pytest.param({"model": [1]}, "is damaged: AttributeError", id="no weights"),
        pytest.param({"model": {"a": 1}}, "is damaged: ValueError a is no tensor", id="weights that are none"),
        pytest.param({"epoch": float("inf")}, "is damaged: OverflowError", id="epoch"),
        pytest.param({"spec": "x = 1"}, "the spec in .*: ", id="spec"),
        pytest.param({"spec": spec_text("rsna-1mm")}, "the keys recipe and digest are missing", id="spec of no recipe"),
        pytest.param({"config": {"epoch": 1}}, "the configuration in .*: key view is missing", id="config"),
        pytest.param({"config": 3}, "is damaged", id="no config"),
        pytest.param({"metrics": None}, "is damaged", id="no metrics"),
        pytest.param({"metrics": {"score": "good"}}, "is damaged: ValueError", id="metrics that are words"),
        pytest.param({"model": {"a": torch.tensor([1.0, torch.nan])}}, "a holds values that are not fin", id="nan"),
        pytest.param({"epoch": float("nan")}, "is damaged: ValueError", id="an epoch that is no number"),
        pytest.param({"prevalence": [torch.nan] * 14}, "is damaged: ValueError", id="prevalence that is no number"),
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


@pytest.fixture
def small(tmp_path):
    """A checkpoint of three tensors, and what is read of it."""
    path = tmp_path / "small.ckpt"
    numbers = {"a": torch.arange(6, dtype=torch.float32), "b": torch.tensor(3), "c": torch.zeros(2, 2)}
    save_atomically({"format_version": 1, "model": numbers}, path)
    return path


@pytest.mark.slow
def test_every_flipped_bit_is_found_or_harmless(small):
    """All of them: in tensors, the pickle, headers, checksums, the list of members and the end."""
    whole, expected = small.read_bytes(), read_file(small)
    found = 0
    for at in range(len(whole)):
        for bit in range(8):
            content = bytearray(whole)
            content[at] ^= 1 << bit
            small.write_bytes(content)
            try:
                assert_same(read_file(small), expected, f"byte {at}, bit {bit}")
            except UsageError:
                found += 1
    assert found > 8 * len(whole) // 3


def test_a_thousand_flipped_bits_of_a_run_are_found_or_harmless(straight, tmp_path):
    """In the weights, and in the state of the optimiser and the loops."""
    random, damaged = Random(0), tmp_path / "x.ckpt"
    found = 0
    for path in (straight.best, straight.last):
        whole, expected = path.read_bytes(), read_file(path)
        for _ in range(500):
            content = bytearray(whole)
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            damaged.write_bytes(content)
            try:
                assert_same(read_file(damaged), expected)
            except UsageError:
                found += 1
    assert found > 300


def test_a_file_that_is_cut_short_is_refused(small):
    whole = small.read_bytes()
    assert len(whole) > 1000
    for length in range(0, len(whole), 7):
        small.write_bytes(whole[:length])
        with pytest.raises(UsageError, match="is no checkpoint of aneurysm, or damaged"):
            read_file(small)


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
