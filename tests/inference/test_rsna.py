"""The RSNA host's gateway, played here: series in random order, some broken, crashing or hanging; always an answer."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.inference import rsna
from aneurysm.inference.calibration import PUBLISHED_RATES, fallback_rates
from aneurysm.inference.predictor import load_predictor
from aneurysm.inference.rsna import RsnaPredictor
from aneurysm.labels import LABELS
from aneurysm.spec import load_spec
from aneurysm.training.checkpoint import model_entries, save_atomically
from aneurysm.training.config_file import parse_config
from tests.support import trouble
from tests.support.acquisition import acquire
from tests.support.checkpoints import PREVALENCE, write_checkpoint
from tests.support.pattern import lone_blob
from tests.support.run_data import ROOT
from tests.support.series import TEST_SET_TAGS, write_multiframe, write_series

TROUBLE = "tests.support.trouble:build"
BUDGET_S = 4.0
PAGE = (ROOT / "docs" / "rsna.md").read_text()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", 0)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    config = parse_config({"model": TROUBLE, "patch": (32, 32, 32)}, "test").resolved()
    path = tmp_path_factory.mktemp("run") / "trouble.ckpt"
    save_atomically(model_entries({}, config, load_spec("rsna-1mm"), 1, {}, PREVALENCE, ["CTA"]), path)
    return path


def write_test_series(root: Path, name: str, height: float = 800.0, slices: int = 24) -> Path:
    """As the host has them: a folder named by the UID, with files of the 25 tags."""
    acquisition = acquire("axial", slices=slices)
    blob = lone_blob(acquisition.lps(slices // 2, 14, 16), height=height, sigma_mm=6.0)
    write_series(root / name, acquisition, blob, uid=name, stripped=True)
    return root / name


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("test-set")
    for k in range(2):
        write_test_series(root, f"1.2.{k}", height=700.0 + 50 * k)
    acquisition = acquire("axial")
    write_multiframe(
        root / "1.2.2", acquisition, lone_blob(acquisition.centre), uid="1.2.2", modality="MR", stripped=True
    )
    return root


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    root = tmp_path_factory.mktemp("broken")
    (root / "1.3.0").mkdir()
    for path in write_test_series(root, "1.3.1").iterdir():
        path.write_bytes(path.read_bytes()[:400])
    write_test_series(root, "1.3.2", slices=1)
    (root / "1.3.3").mkdir()
    for k in range(3):
        (root / "1.3.3" / f"{k}.dcm").write_bytes(random.Random(k).randbytes(5000))
    return root


class Gateway:
    """Copies the files of a series to the shared folder, below their own absolute path, and asks for its answer."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared

    def ask(self, predict, folder: Path) -> pd.DataFrame:
        assert list(self.shared.iterdir()) == []
        there = self.shared / folder.absolute().relative_to("/")
        there.mkdir(parents=True)
        for path in folder.glob("*.dcm"):
            shutil.copy(path, there)
        answer = predict(str(there))
        assert isinstance(answer, pd.DataFrame)
        assert list(answer.columns) == list(LABELS)
        assert len(answer) == 1
        assert (answer.dtypes == np.float64).all()
        assert answer.to_numpy().min() >= 0
        assert answer.to_numpy().max() <= 1
        return answer


@pytest.fixture
def gateway(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    return Gateway(shared)


def serve(checkpoint, gateway, **options):
    return RsnaPredictor([checkpoint], shared_dir=gateway.shared, time_budget_s=BUDGET_S, device="cpu", **options)


def test_the_fixtures_keep_to_the_tags_of_the_test_set(good):
    import pydicom

    assert not any("SeriesInstanceUID" in pydicom.dcmread(p) for p in good.rglob("*.dcm"))
    assert len(TEST_SET_TAGS) == 24  # and TransferSyntaxUID


def test_good_and_broken_series_in_random_order(checkpoint, good, broken, gateway, caplog):
    predictor = load_predictor([checkpoint], device="cpu")
    expected = {f.name: list(predictor(f).probabilities.values()) for f in good.iterdir()}
    order = [*good.iterdir(), *broken.iterdir()] * 2
    random.Random(0).shuffle(order)
    with serve(checkpoint, gateway) as server, caplog.at_level(logging.WARNING):
        assert server.predict.__name__ == "predict", "the gateway finds the function by its name"
        first = server._child.pid
        for folder in order:
            caplog.clear()
            answer = gateway.ask(server.predict, folder)
            if folder.name in expected:
                assert np.allclose(answer, expected[folder.name], atol=1e-5)
                assert caplog.text == ""
            else:
                assert np.allclose(answer, PREVALENCE)
                assert f"base rates for {folder.name}: " in caplog.text
                assert str(gateway.shared) not in caplog.text
                assert re.search("no_files|no_images|too_few_slices|unreadable_pixels|unsupported_pixels", caplog.text)
        assert server._child.pid == first, "a series that can't be read costs no restart"


def test_trouble_costs_one_series_its_answer_and_no_other(troubled, good, gateway, tmp_path, caplog):
    """One server for all of it, since each start takes seconds."""
    cases = [
        (trouble.CRASHES, "was ended by SIGSEGV: a crash in a decoder or another library"),
        (trouble.HANGS, "not done after 4 s"),
        (trouble.RAISES, "CUDA error"),
        (trouble.IS_NAN, "not a number"),
    ]
    with serve(troubled, gateway, architecture=TROUBLE) as server, caplog.at_level(logging.WARNING):
        before = gateway.ask(server.predict, good / "1.2.1")
        assert not np.allclose(before, PREVALENCE)
        for k, (height, reason) in enumerate(cases):
            bad = write_test_series(tmp_path, f"1.4.{k}", height=height)
            started = time.monotonic()
            assert np.allclose(gateway.ask(server.predict, bad), PREVALENCE)
            assert time.monotonic() - started < 60
            assert re.search(reason, caplog.records[-1].message)
            assert np.allclose(gateway.ask(server.predict, good / "1.2.1"), before)
            assert list(gateway.shared.iterdir()) == []
        noisy = write_test_series(tmp_path, "1.4.9", height=trouble.PRINTS)
        assert not np.allclose(gateway.ask(server.predict, noisy), PREVALENCE), "what libraries print is no answer"
        pid = server._child.pid
    assert not psutil.pid_exists(pid)


def test_a_process_that_was_killed_between_two_series_is_replaced(checkpoint, good, gateway):
    with serve(checkpoint, gateway) as server:
        kill(server)
        assert not np.allclose(gateway.ask(server.predict, good / "1.2.0"), PREVALENCE)


def kill(server):
    process = psutil.Process(server._child.pid)
    process.kill()
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


@pytest.mark.slow
def test_no_process_at_all_still_gives_base_rates(checkpoint, good, gateway, monkeypatch):
    with serve(checkpoint, gateway) as server:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        kill(server)
        for _ in range(2):
            assert np.allclose(gateway.ask(server.predict, good / "1.2.0"), PREVALENCE)
        monkeypatch.undo()
        assert not np.allclose(gateway.ask(server.predict, good / "1.2.0"), PREVALENCE)


def test_the_process_ends_with_its_parent(troubled, tmp_path):
    """Also amid a series that hangs."""
    hangs = write_test_series(tmp_path, "1.4.1", height=trouble.HANGS)
    code = f"""
import os, signal, threading, time
from aneurysm.inference.rsna import RsnaPredictor
server = RsnaPredictor([{str(troubled)!r}], device="cpu", architecture={TROUBLE!r}, shared_dir="nowhere")
print(server._child.pid, flush=True)
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
server.predict({str(hangs)!r})
"""
    import subprocess

    # No `if __name__ == "__main__"`: a script as plain as a notebook.
    (tmp_path / "script.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=env, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    child = int(ran.stdout)
    end = time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_shared_folder_is_emptied_and_links_are_not_followed(tmp_path):
    kept = tmp_path / "kept"
    (kept / "deep").mkdir(parents=True)
    (kept / "deep" / "file").write_text("stays")
    shared = tmp_path / "shared"
    (shared / "a" / "b").mkdir(parents=True)
    (shared / "a" / "b" / "file").write_text("goes")
    (shared / "a" / "link").symlink_to(kept)
    (shared / "link").symlink_to(kept)
    (shared / ".hidden").write_text("goes")
    rsna._empty(shared)
    assert list(shared.iterdir()) == []
    assert (kept / "deep" / "file").read_text() == "stays"
    rsna._empty(tmp_path / "nowhere")


def test_a_file_that_can_t_be_removed_keeps_no_other_there(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    unlink = Path.unlink

    def refused(path):
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        unlink(path)

    monkeypatch.setattr(Path, "unlink", refused)
    rsna._empty(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_is_wrong_at_the_start_is_told_there(checkpoint, tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint"):
        RsnaPredictor([tmp_path / "none.ckpt"])
    # Each costs a process; what else `load_predictor` refuses comes out of it the same way.
    plain = write_checkpoint(tmp_path / "plain.ckpt", 0, spec="arrays-u8", modalities=["unknown"])
    with pytest.raises(UsageError, match="trained on plain arrays"):
        RsnaPredictor([plain])


def test_the_code_on_the_page(checkpoint, good, tmp_path, monkeypatch):
    """In a notebook of the host: in its rerun the server serves, before that it asks itself."""
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "kaggle" in b]
    answers = {}

    class Server:
        def __init__(self, *functions):
            self.functions = {f.__name__: f for f in functions}

        def serve(self):
            answers["served"] = self.functions["predict"](str(good / "1.2.0"))

        def run_local_gateway(self):
            answers["local"] = self.functions["predict"](str(good / "1.2.0"))

    module = types.ModuleType("kaggle_evaluation.rsna_inference_server")
    module.RSNAInferenceServer = Server
    package = types.ModuleType("kaggle_evaluation")
    package.rsna_inference_server = module
    monkeypatch.setitem(sys.modules, "kaggle_evaluation", package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (place,) = re.findall(r'"(/kaggle/input/.*?)"', block)
    names = {}
    for rerun in ("1", ""):
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", rerun)
        exec(compile(block.replace(place, str(checkpoint)), "docs/rsna.md", "exec"), names)
        names["rsna"].close()
    assert list(answers) == ["served", "local"]
    assert not np.allclose(answers["served"], PREVALENCE)


def test_base_rates_are_those_of_training_where_the_checkpoint_has_them(checkpoint, tmp_path):
    assert len(PUBLISHED_RATES) == len(LABELS)
    assert PUBLISHED_RATES[LABELS.index("Aneurysm Present")] == pytest.approx(0.4287, abs=1e-4)
    assert PUBLISHED_RATES[LABELS.index("Anterior Communicating Artery")] == max(PUBLISHED_RATES[:13])
    content = torch.load(checkpoint, weights_only=True)
    for known, expected in (
        ([0.25] * 14, [0.25] * 14),
        ([None, *[0.25] * 13], list(PUBLISHED_RATES)),
    ):
        content["prevalence"] = known
        torch.save(content, tmp_path / "a.ckpt")
        assert fallback_rates([tmp_path / "a.ckpt"]) == expected
    del content["prevalence"]
    torch.save(content, tmp_path / "old.ckpt")
    assert fallback_rates([tmp_path / "old.ckpt"]) == list(PUBLISHED_RATES)
