"""aneurysm train --fold all: which runs it makes, in which order, on which devices, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest
import torch

from aneurysm.cli import train_folds
from aneurysm.cli.evaluate import _runs_at
from aneurysm.cli.predict_input import split
from aneurysm.cli.train_folds import device_slots, run_side_by_side
from aneurysm.errors import UsageError
from aneurysm.training.checkpoint import load_checkpoint
from aneurysm.training.config_file import load_config, read_resolved
from aneurysm.training.folds import fold_rows
from aneurysm.training.run_folder import FoldsFolder, RunFolder, newest_run
from tests.support.command import call_cli, end_all, group_members, run_cli, start_cli
from tests.support.train_runs import assert_same, make_cache

pytestmark = pytest.mark.timeout(600)
QUICK = (
    "--model", "tests.support.tiny:classifier", "--patch", 16, "--batch-size", 4, "--epochs", 1, "--steps-per-epoch", 2,
    "--folds", 3, "--workers", 0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    end_all()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def commands(monkeypatch):
    """Commands of folds run in this process, one after the other; returned are their arguments. No report is made."""
    ran = []

    def run(arguments_by_fold, slots):
        codes = {}
        for fold, arguments in arguments_by_fold.items():
            ran.append((fold, list(arguments), len(slots)))
            codes[fold] = call_cli(*arguments).code
        return codes, None

    monkeypatch.setattr(train_folds, "run_side_by_side", run)
    monkeypatch.setattr("aneurysm.cli.evaluate.evaluate", lambda runs: ran.append(("evaluate", runs, 0)))
    return ran


def test_all_folds_are_trained_and_evaluated_together(cache, commands, tmp_path):
    out = tmp_path / "all"
    ran = call_cli("train", "--cache", cache.root, *QUICK, "--fold", "all", "--test-fold", 0, "--out", out)
    assert ran.code == 0, ran.text
    folder = FoldsFolder(out)
    assert [run.root.name for run in folder.runs()] == ["fold1", "fold2"]
    assert [fold for fold, *_ in commands] == [1, 2, "evaluate"]
    assert commands[-1][1] == [out]
    for fold in (1, 2):
        config = read_resolved(folder.run(fold).config)
        assert (config.fold, config.test_fold) == (fold, 0)
        assert fold_rows(folder.run(fold).folds) == fold_rows(folder.folds)
    assert "All 2 folds are trained" in ran.out
    # The run of a fold is the one that is made of it alone.
    alone = tmp_path / "alone"
    options = ("--fold", 1, "--test-fold", 0, "--out", alone)
    assert call_cli("train", "--cache", cache.root, *QUICK, *options).code == 0
    assert_same(load_checkpoint(RunFolder(alone).last).weights, load_checkpoint(folder.run(1).last).weights)

    assert _runs_at(out) == [folder.run(1).root, folder.run(2).root]
    assert _runs_at(alone) == [alone]
    checkpoints, _ = split([str(out), str(cache.root)])
    assert checkpoints == [folder.run(1).best, folder.run(2).best]
    again = call_cli("train", "--cache", cache.root, *QUICK, "--fold", "all", "--out", out)
    assert again.code == 2
    assert f"holds runs of all folds. Go on with them: --out {out} --resume" in again.err
    assert call_cli("train", "--cache", cache.root, *QUICK, "--out", out).code == 2


def test_a_stopped_one_goes_on_where_it_was(cache, commands, tmp_path, monkeypatch):
    """Fold 0 is done, fold 1 was killed before it was first saved; now with more epochs."""
    monkeypatch.chdir(tmp_path)
    ran = call_cli("train", "--cache", cache.root, *QUICK, "--folds", 2, "--fold", "all", "--out", "runs/all")
    assert ran.code == 0, ran.text
    folder = FoldsFolder(tmp_path / "runs" / "all")
    for path in (*folder.run(1).last.parent.iterdir(), folder.run(1).metrics):
        path.unlink()
    assert newest_run() == folder.root.relative_to(tmp_path)
    commands.clear()
    again = call_cli("train", "--resume")
    assert again.code == 0, again.text
    assert again.err.startswith("done before: fold 0\n")
    assert [fold for fold, *_ in commands] == [1, "evaluate"]
    for path in (*folder.run(1).last.parent.iterdir(), folder.run(1).metrics):
        path.unlink()
    commands.clear()
    refused = call_cli("train", "--resume", "--lr", 0.1)
    assert refused.code == 2
    assert f"--resume goes on with {folder.config.relative_to(tmp_path)}; besides it only" in refused.err
    ran = call_cli("train", "--resume", "--fold", "all", "--epochs", 2)
    assert ran.code == 0, ran.text
    assert ["--resume" in arguments for fold, arguments, _ in commands if fold != "evaluate"] == [True, False]
    assert [read_resolved(folder.run(fold).config).epochs for fold in range(2)] == [2, 2]
    assert {len(folder.run(fold).metrics.read_text().splitlines()) for fold in range(2)} == {3}


def test_each_fold_begins_with_the_weights_of_its_own(cache, commands, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    options = ("train", "--cache", cache.root, *QUICK, "--folds", 2, "--fold", "all")
    assert call_cli(*options, "--out", first).code == 0
    assert call_cli(*options, "--out", second, "--init", first).code == 0
    for fold in range(2):
        config = read_resolved(FoldsFolder(second).run(fold).config)
        assert config.init == str(FoldsFolder(first).run(fold).best)
        assert "trained on none of the held-out patients" in FoldsFolder(second).run(fold).log.read_text()


def test_a_fold_that_fails_gives_the_exit_code_and_no_report(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(train_folds, "run_side_by_side", lambda _commands, _slots: ({0: 0, 1: 1, 2: -9}, None))
    out = tmp_path / "all"
    ran = call_cli("train", "--cache", cache.root, *QUICK, "--fold", "all", "--out", out)
    assert ran.code == 1
    assert f"fold 1 ended with exit code 1: see {out}/fold1/log.txt; fold 2 was ended by SIGKILL, for which" in ran.err
    assert f"1 of 3 folds are trained. To go on: aneurysm train --out {out} --resume" in ran.err
    assert not (out / "evaluation").exists()
    monkeypatch.setattr(train_folds, "run_side_by_side", lambda _commands, _slots: ({0: 143}, signal.SIGTERM))
    ran = call_cli("train", "--resume", "--out", out)
    assert (ran.code, ran.err) == (143, f"aneurysm: stopped. To go on: aneurysm train --out {out} --resume\n")


@pytest.mark.parametrize(
    "options, words",
    [
        pytest.param(("--modality", "MRI T2"), "no series in .* has the modality 'MRI T2'", id="modality"),
        pytest.param(("--test-fold", 7), "no series is in fold 7, to be kept for a test", id="test fold"),
        pytest.param(("--fold", "every"), "give a number from 0, or all", id="name"),
        pytest.param(("--resume", "--out", "none"), "nothing to go on from in none: it has no folds.toml", id="resume"),
        pytest.param(("--init", "none.ckpt"), "there is no checkpoint none.ckpt", id="init"),
        pytest.param(("--devices", 100_000), "--devices 100000: ", id="devices"),
    ],
)
def test_what_can_t_be_is_said_before_any_fold_is_trained(cache, commands, tmp_path, options, words):
    given = () if "--resume" in options else ("--cache", cache.root, *QUICK)
    ran = call_cli("train", *given, "--fold", "all", *options, cwd=tmp_path)
    assert ran.code == 2, ran.text
    assert ran.err.count("\n") == 1
    assert re.search(words, ran.err), ran.err
    assert not commands
    assert not list(tmp_path.iterdir())


def test_as_many_folds_as_there_are_gpus_for(monkeypatch):
    def slots(gpus, devices, visible=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        config = load_config(None, {"devices": devices}).resolved()
        return [slot.get("CUDA_VISIBLE_DEVICES") for slot in device_slots(config)]

    assert slots(4, 1) == ["0", "1", "2", "3"]
    assert slots(5, 2) == ["0,1", "2,3"]
    assert slots(2, 1, visible="GPU-a,GPU-b") == ["GPU-a", "GPU-b"]
    assert slots(4, "auto") == slots(4, 3) == slots(0, 1) == [None]
    with pytest.raises(UsageError, match="there are 2 GPUs here"):
        slots(2, 3)


SCRIPT = """
import os, signal, sys, time
del sys.argv[1]
fold, *more = sys.argv[1:]
print("of", fold, "on", os.environ.get("GPU"), flush=True)
if "wait" in more:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
sys.exit(int(more[0]) if more else 0)
"""


def test_slots_are_used_again_and_lines_say_whose_they_are(capfd):
    codes, number = run_side_by_side({k: [str(k)] for k in range(5)}, [{"GPU": "a"}, {"GPU": "b"}], SCRIPT)
    assert (codes, number) == (dict.fromkeys(range(5), 0), None)
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line.split(" on ")[0] for line in lines] == [f"fold {k}: of {k}" for k in range(5)]
    assert {line[-1] for line in lines} == {"a", "b"}


def test_after_a_mistake_that_is_all_folds_none_begins(capfd):
    commands = {0: ["0", "1"], 1: ["1", "2"], 2: ["2"]}
    assert run_side_by_side(commands, [{}], SCRIPT)[0] == {0: 1, 1: 2}
    assert capfd.readouterr().out == "of 0 on None\nof 1 on None\n"


def test_a_signal_is_passed_on_and_no_other_fold_begins(capfd):
    before = signal.getsignal(signal.SIGTERM)

    def when_ready():
        seen = ""
        while seen.count("ready") < 2:
            time.sleep(0.05)
            seen += capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=when_ready)
    thread.start()
    codes, number = run_side_by_side({k: [str(k), "wait"] for k in range(3)}, [{}, {}], SCRIPT)
    thread.join()
    assert (codes, number) == ({0: 143, 1: 143}, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_ctrl_c_saves_the_fold_in_work_and_the_same_command_goes_on(cache, tmp_path):
    """In processes of their own, to the group as a terminal sends it; then the parent is killed; then to the end."""
    out = tmp_path / "all"
    options = ("--cache", cache.root, *QUICK, "--steps-per-epoch", 4000, "--fold", "all", "--out", out)
    process = start_cli("train", *options)
    seen = ""
    while "Ctrl-C saves" not in seen:
        seen += process.stderr.readline()
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, seen + err
    assert err.endswith(f"aneurysm: stopped. To go on: aneurysm train --out {out} --resume\n")
    state = torch.load(out / "fold0" / "checkpoints" / "last.ckpt", weights_only=True)["loader"]
    assert 0 < state["step"] < 4000
    assert not (out / "fold1").exists()

    process = start_cli("train", "--out", out, "--resume")
    seen = ""
    while "Ctrl-C saves" not in seen:
        seen += process.stderr.readline()
    time.sleep(3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 60
    while group_members(process):
        assert time.monotonic() < end
        time.sleep(0.1)
    later = torch.load(out / "fold0" / "checkpoints" / "last.ckpt", weights_only=True)["loader"]
    assert later["step"] > state["step"]

    (out / "fold0" / "checkpoints" / "last.ckpt").unlink()
    config = out / "folds.toml"
    config.write_text(config.read_text().replace("steps_per_epoch = 4000", "steps_per_epoch = 2"))
    ran = run_cli("train", "--out", out, "--resume", timeout_s=280)
    assert ran.code == 0, ran.text
    assert "All 3 folds are trained" in ran.out
    assert "12 held-out series of 12 patients, 3 runs" in ran.out
    assert (out / "evaluation" / "report.html").is_file()
    assert call_cli("evaluate", out, "--samples", 40).code == 0
