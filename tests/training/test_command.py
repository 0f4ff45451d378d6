"""aneurysm train as it is typed: exit codes, what it says, two processes, and signals."""

from __future__ import annotations

import csv
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import psutil
import pytest
import torch

from aneurysm.training.checkpoint import load_checkpoint
from aneurysm.training.config_file import read_resolved
from aneurysm.training.run_folder import RunFolder
from tests.support.command import call_cli, end_all, environment, group_members, run_cli, start_cli
from tests.support.run_data import ROOT
from tests.support.tiny import everything
from tests.support.train_runs import make_cache

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
QUICK = ("--patch", "16", "--batch-size", 4, "--epochs", 2, "--steps-per-epoch", 4, "--folds", 3, "--workers", 0)
TINY = ("--model", "tests.support.tiny:mapper", *QUICK)


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    end_all()


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_whole_run_of_a_shipped_model(train_cache, tmp_path):
    """With a configuration file, a worker, and no --out; then predictions with its best checkpoint."""
    (tmp_path / "mine.toml").write_text("seed = 3\nepochs = 7\n[model_options]\nwidth = 0.125\n")
    ran = call_cli(
        "train", "--cache", train_cache.root, "--config", "mine.toml", "--patch", "24,32,32", "--batch-size", 2,
        "--epochs", 1, "--steps-per-epoch", 2, "--folds", 3, "--loss", "focal", "--sampling", "stratified",
        "--lr", 1e-3, "--workers", 1, "--modality", "CTA", "MRA", cwd=tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.text
    (root,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-resnet3d18-fold0", root.name)
    folder = RunFolder(root)
    config = read_resolved(folder.config)
    assert (config.seed, config.epochs, config.patch, config.sampling.balance) == (3, 1, (24, 32, 32), "stratified")
    assert config.losses == {"focal": 1.0, "consistency": 0.1}
    assert config.modality == ("CTA", "MRA")
    for said in (f"run      runs/{root.name}", "series   8 to train on", "4 held out", "AUC present", "epoch 1: loss"):
        assert said in ran.err
    for said in ("Best: epoch 1", f"runs/{root.name}/checkpoints/best.ckpt", "tensorboard --logdir"):
        assert said in ran.out
    with torch.inference_mode():
        output = load_checkpoint(folder.best).build_model()(torch.zeros(1, 1, 24, 32, 32))
    assert output.logits.shape == (1, 14)


@pytest.mark.parametrize(
    "number, code",
    [
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, id="Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_resume_goes_on(train_cache, tmp_path, number, code):
    """To the whole process group, as Ctrl-C and a batch system send it: the loader's workers get it, too."""
    out = tmp_path / "run"
    options = ("--cache", train_cache.root, *TINY, "--steps-per-epoch", 4000, "--workers", 2, "--out", out)
    process = start_cli("train", *options)
    seen = ""
    while "Ctrl-C saves" not in seen:
        seen += process.stderr.readline()
    time.sleep(3)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, seen + err
    assert f"To go on: aneurysm train --out {out} --resume" in err
    assert "Traceback" not in err
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["loader"]
    assert 0 < state["step"] < 4000
    assert state["epoch"] == 0


@pytest.mark.slow
def test_two_processes_train_as_one_does(train_cache, tmp_path):
    """
    Two with batches of 2 draw the patches that one with 4 draws, and have the same gradient, step by step: also where
    only one of them has a lesion to map, and in the last step of an epoch, of one batch where the others have two.
    """
    runs = {}
    # Without batch normalisation, whose statistics are those of each process's own part.
    model = ("--model", "tests.support.tiny:everything", *QUICK, "--steps-per-epoch", 3, "--config", "mine.toml")
    (tmp_path / "mine.toml").write_text(
        "[losses]\nbce = 1\nconsistency = 1\ndense_dice = 1\ndense_top_k = 1\nvessels = 1\n"
        '[optimizer]\nname = "sgd"\nlearning_rate = 0.3\naccumulate = 2\nclip_norm = 0\n'
        "[sampling]\nlesion = 0.3\n"
    )
    for devices, batch in ((1, 4), (2, 2)):
        out = tmp_path / str(devices)
        ran = run_cli(
            "train", "--cache", train_cache.root, *model, "--batch-size", batch, "--devices", devices, "--out", out,
            env=environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1"), timeout_s=150, cwd=tmp_path,
        )  # fmt: skip
        assert ran.code == 0, ran.text
        assert ran.err.count("held out (") == 1  # one process speaks
        assert len(list(out.rglob("*.ckpt"))) == 2
        runs[devices] = RunFolder(out)
    one, two = (load_checkpoint(runs[n].last).weights for n in (1, 2))
    torch.manual_seed(0)
    begun = everything(1).state_dict()
    learnt = {name: (tensor - begun[name]).abs().max() for name, tensor in one.items()}
    assert max(learnt.values()) > 1e-3
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 1e-6 + 1e-3 * learnt[name], name
    for a, b in zip(rows(runs[1].metrics), rows(runs[2].metrics), strict=True):
        assert (a["score"], a["present_auc"]) == (b["score"], b["present_auc"])
        for loss in ("loss", "loss: bce", "loss: dense_dice"):
            assert float(a[loss]) == pytest.approx(float(b[loss]), rel=1e-4)
    a, b = (rows(runs[n].predictions) for n in (1, 2))
    assert [r["series_uid"] for r in a] == [r["series_uid"] for r in b]
    last = read_loader(runs[2])
    assert (last["batch_size"], last["step"]) == (4, 3)


def read_loader(folder: RunFolder) -> dict[str, int]:
    return torch.load(folder.last, weights_only=True)["loader"]


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(train_cache, tmp_path):
    out = tmp_path / "run"
    options = ("--cache", train_cache.root, *TINY, "--steps-per-epoch", 4000, "--devices", 2, "--out", out)
    process = start_cli("train", *options, env=environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1"))
    seen = ""
    while "Ctrl-C saves" not in seen:
        seen += process.stderr.readline()
    while not (out / "tensorboard").exists():
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, seen + err
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["loader"]
    assert state["step"] % 20 == 0 < state["step"]


@pytest.mark.parametrize(
    "options, code, words",
    [
        pytest.param(("--cache", "none"), 3, "there is no cache at .*none: there is no .*none", id="no cache"),
        pytest.param(("--fold", 3), 2, "there is no fold 3 of 3", id="fold"),
        pytest.param(("--model", "resnet"), 2, "there is no model 'resnet'. Did you mean", id="model"),
        pytest.param(("--patch", "1,2"), 2, "give one edge in voxels, or three as Z,Y,X", id="patch"),
        pytest.param(("--loss", "dice"), 2, "--loss dice: choose from bce, focal, asl", id="loss"),
        pytest.param(("--sampling", "fair"), 2, "--sampling fair: choose from natural, label", id="sampling"),
        pytest.param(("--precision", "64"), 2, "--precision 64: choose from auto, fp32", id="precision"),
        pytest.param(("--devices", "many"), 2, "devices", id="devices"),
        pytest.param(("--config", "none.toml"), 2, "no configuration file none.toml", id="config"),
        pytest.param(("--resume",), 2, "there is no run to be resumed in runs", id="nothing to resume"),
        pytest.param(("--resume", "--out", "x"), 2, "nothing to go on from in x", id="no run to resume"),
        pytest.param(("--out", "/proc/x"), 2, "the folder /proc/x can't be made", id="unwritable folder"),
        pytest.param(("--init", "none.ckpt"), 2, "no checkpoint none.ckpt", id="init"),
        pytest.param(("MRA",), 2, "unexpected argument 'MRA'", id="argument"),
        pytest.param(
            ("--modality", "PET"), 2, "no series in .* has the modality 'PET'; there are CTA, MRA", id="modality"
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(train_cache, tmp_path, options, code, words):
    given = ("--cache", train_cache.root) if "--cache" not in options else ()
    resumes = "--resume" in options
    ran = call_cli("train", *given, *(() if resumes else TINY), *options, cwd=tmp_path)
    assert ran.code == code, ran.text
    assert re.search(words, ran.err)
    assert ran.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def zip_bomb(path, _sound):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))


HOSTILE = {
    "a command": lambda path, _: path.write_bytes(pickle.dumps(Evil(), protocol=2)),
    "a zip bomb": zip_bomb,
    "cut short": lambda path, sound: path.write_bytes(sound[: len(sound) // 2]),
    "a folder": lambda path, _: path.mkdir(),
    "a pipe": lambda path, _: os.mkfifo(path),
    "without an end": lambda path, _: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_checkpoint_is_one_line_and_runs_nothing(train_cache, straight, tmp_path, what):
    """Given to begin from, and found where a run is to go on."""
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    for path in (straight.config, straight.folds):
        shutil.copy(path, tmp_path / "run")
    HOSTILE[what](last, straight.last.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    begun = ("--cache", train_cache.root, *TINY, "--out", "new", "--init", last)
    for options in (begun, ("--out", "run", "--resume")):
        ran = call_cli("train", *options, cwd=tmp_path)
        assert ran.code == 2, ran.text
        assert re.fullmatch(r"aneurysm: .*last\.ckpt .*\n", ran.err), ran.err
        assert len(ran.err) < 500
        assert sorted(tmp_path.rglob("*")) == before, options


def test_resume_takes_no_options_that_would_change_the_run(train_cache, tmp_path):
    assert call_cli("train", "--cache", train_cache.root, *TINY, "--out", "run", cwd=tmp_path).code == 0
    ran = call_cli("train", "--out", "run", "--resume", "--lr", 0.1, cwd=tmp_path)
    assert ran.code == 2
    assert "besides it only cache, devices, epochs, local_cache, local_cache_gb, workers may be given" in ran.err
    ran = call_cli("train", "--out", "run", "--resume", cwd=tmp_path)
    assert (ran.code, ran.out) == (0, "All 2 epochs of run are done; --epochs 4 would go on.\n")
    ran = call_cli("train", "--cache", train_cache.root, *TINY, "--out", "run", cwd=tmp_path)
    assert ran.code == 2
    assert "run holds a run" in ran.err


def test_volumes_of_another_digest_are_refused(tmp_path):
    make_cache(tmp_path / "cache")
    manifest = tmp_path / "cache" / "manifest.csv"
    digest = rows(manifest)[3]["digest"]
    lines = manifest.read_text().splitlines()
    lines[4] = lines[4].replace(digest, "0" * 16)
    manifest.write_text("\n".join(lines) + "\n")
    ran = call_cli("train", "--cache", "cache", *TINY, cwd=tmp_path)
    assert ran.code == 3
    assert f"lists volumes of digest {'0' * 16}, not {digest}" in ran.err


@pytest.mark.slow
def test_a_run_ends_with_a_rank_that_is_killed(train_cache, tmp_path):
    out = tmp_path / "run"
    options = ("--cache", train_cache.root, *TINY, "--steps-per-epoch", 4000, "--devices", 2, "--out", out)
    process = start_cli("train", *options, env=environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1"))
    while not (out / "tensorboard").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    time.sleep(2)
    (other,) = psutil.Process(process.pid).children()
    other.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert re.fullmatch(r"aneurysm: rank 1 of 2: .* was ended by SIGKILL: out of memory is the usual cause", last(err))
    assert "Traceback" not in err
    assert not group_members(process)


@pytest.mark.slow
def test_a_run_ends_with_the_error_of_another_rank(train_cache, tmp_path):
    """In its first step, of which the first rank has sent its part."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FAILS)
    options = ("--cache", train_cache.root, *TINY, "--devices", 2, "--out", tmp_path / "run")
    env = environment(first_path=site, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    ran = run_cli("train", *options, env=env)
    assert ran.code == 1, ran.text
    assert re.fullmatch(r"aneurysm: out of memory on cpu, with batches of 4 patches .*", last(ran.err))
    assert "Traceback" not in ran.err


def last(text: str) -> str:
    return text.strip().splitlines()[-1]


FAILS = """
import sys
if "child_main" in " ".join(sys.orig_argv):
    import torch
    def forward(self, image):
        raise torch.OutOfMemoryError("no memory")
    import tests.support.tiny
    tests.support.tiny.Tiny.forward = forward
"""


@pytest.mark.slow
def test_torchrun_starts_the_processes(train_cache, tmp_path):
    config = tmp_path / "mine.toml"
    config.write_text('model = "tests.support.tiny:mapper"\n')
    ran = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "aneurysm", "train",
            "--cache", train_cache.root, "--config", config, *map(str, QUICK), "--out", tmp_path / "run",
        ],
        env=environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1"), cwd=ROOT, capture_output=True, text=True,
        timeout=150, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("held out (") == 1
    assert "8 per step" in ran.stderr
    assert [row["epoch"] for row in rows(tmp_path / "run" / "metrics.csv")] == ["1", "2"]
