"""Processes that predict and read: series spread over them, and the one that kills them costs no other."""

from __future__ import annotations

import csv
import os
import signal
import time

import numpy as np
import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.inference.multi_device import device_names, predict_on
from aneurysm.inference.prediction import Prediction
from aneurysm.inference.predictor import load_predictor
from aneurysm.inference.read_series import Failure
from aneurysm.inference.series_paths import find_paths
from aneurysm.labels import LABELS
from aneurysm.precaching.run import precache
from tests.support import hooks
from tests.support.acquisition import acquire
from tests.support.checkpoints import write_checkpoint
from tests.support.command import call_cli, end_all, environment, group_members, run_cli, start_cli
from tests.support.pattern import lone_blob
from tests.support.running import assert_group_ends, wait_until
from tests.support.series import write_series

UIDS = [f"1.2.{k}" for k in range(5)]
BRIGHT = "1.2.1"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five series, of which one is brighter than the others."""
    root = tmp_path_factory.mktemp("data")
    for uid in UIDS:
        acquisition = acquire("axial", slices=16)
        height = 2000.0 if uid == BRIGHT else 300.0
        write_series(root / uid, acquisition, lone_blob(acquisition.lps(9, 9, 9), height=height), uid=uid)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", 0)


@pytest.fixture(scope="module")
def deadly(tmp_path_factory):
    return write_checkpoint(
        tmp_path_factory.mktemp("deadly") / "best.ckpt", 0, model={"model": "tests.support.deadly:model"}
    )


def rows_of(path):
    with path.open(newline="") as file:
        return {row["series_uid"]: row for row in csv.DictReader(file)}


def test_two_processes_answer_what_one_does(data, checkpoint, tmp_path):
    (tmp_path / "1.2.9").mkdir()
    given = (checkpoint, data, tmp_path / "1.2.9", "--device", "cpu")
    assert call_cli("predict", *given, "--out", tmp_path / "1.csv").code == 8
    ran = call_cli("predict", *given, "--out", tmp_path / "2.csv", "--devices", 2)
    assert ran.code == 8, ran.text
    one, two = rows_of(tmp_path / "1.csv"), rows_of(tmp_path / "2.csv")
    assert set(one) == set(two) == {*UIDS, "1.2.9"}
    for uid in UIDS:
        values = [[float(rows[uid][label]) for label in LABELS] for rows in (one, two)]
        assert np.allclose(*values, atol=1e-5)
    # One table, whatever the devices: the same command resumes it.
    again = call_cli("predict", *given, "--out", tmp_path / "1.csv", "--devices", 2)
    assert again.out.startswith("0 series in")


def test_windows_of_a_process_are_counted(data, tmp_path):
    small, counts = write_checkpoint(tmp_path / "small.ckpt", 0, patch=(8, 8, 8)), []
    (path,) = find_paths(data / UIDS[0])
    (answer,) = predict_on(["cpu"], [small], {"batch_size": 4}, [path], lambda *both: counts.append(both))
    assert isinstance(answer, Prediction)
    assert len(counts) >= 2
    assert len({of for _, of in counts}) == 1
    assert [done for done, _ in counts] == sorted(4 * (k + 1) for k in range(len(counts)))


def test_a_series_that_kills_its_process_costs_no_other(data, deadly):
    """The bright one kills whoever predicts it, twice; those that shared its batch are answered."""
    options = {"architecture": "tests.support.deadly:model", "calibration": None}
    answers = {a.series_uid: a for a in predict_on(["cpu"], [deadly], options, find_paths(data))}
    assert set(answers) == set(UIDS)
    lost = answers.pop(BRIGHT)
    assert isinstance(lost, Failure)
    assert (lost.status, lost.reason) == ("failed", "worker_killed")
    assert all(isinstance(a, Prediction) for a in answers.values())


@pytest.mark.parametrize(
    "devices, members, number, code",
    [
        # The command and one that reads; or, of two devices, two that predict.
        pytest.param(1, 2, signal.SIGINT, 130, id="one device, Ctrl-C"),
        pytest.param(2, 3, signal.SIGTERM, 143, id="two devices, SIGTERM"),
    ],
)
def test_no_process_outlives_a_command_that_is_stopped(data, checkpoint, tmp_path, devices, members, number, code):
    given = (checkpoint, data, "--out", tmp_path / "x.csv", "--devices", devices, "--device", "cpu")
    process = start_cli("predict", *given)
    try:
        assert wait_until(lambda: len(group_members(process)) >= members, process)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert "Traceback" not in err
        assert_group_ends(process)
    finally:
        end_all()


def test_cached_volumes_and_what_is_asked_for_get_to_the_process(data, checkpoint, tmp_path):
    precache(data, tmp_path / "cache", workers=0)
    paths = find_paths(tmp_path / "cache")
    answers = list(predict_on(["cpu"], [checkpoint], {"gate": 1.0, "candidates": 1}, paths))
    assert [a.series_uid for a in answers] == [p.uid for p in paths]
    for answer in answers:
        expected = 1 / (1 + np.exp(-answer.logits.astype(float)))
        expected[:13] *= expected[13]
        assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
        assert len(answer.candidates) == 1


def test_what_is_wrong_with_the_checkpoint_is_said(data, tmp_path):
    (tmp_path / "x.ckpt").write_text("no checkpoint")
    with pytest.raises(UsageError, match="is no checkpoint"):
        list(predict_on(["cpu"], [tmp_path / "x.ckpt"], {}, find_paths(data)))
    assert list(predict_on(["cpu", "cpu"], [tmp_path / "x.ckpt"], {}, [])) == []


@pytest.mark.parametrize(
    "fault, options, reason",
    [
        pytest.param(hooks.KILLED, (), "worker_killed", id="killed"),
        pytest.param(hooks.SEGMENTATION_FAULT, (), "worker_killed", id="crash", marks=pytest.mark.slow),
        pytest.param(hooks.HANGS, ("--timeout-s", 3), "timed_out", id="hangs", marks=pytest.mark.slow),
        pytest.param(hooks.GROWS, ("--memory-mb", 800), "out_of_memory", id="grows", marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_is_lost_costs_one_series_and_not_the_command(data, checkpoint, tmp_path, fault, options, reason):
    env = environment(first_path=hooks.write_hook(tmp_path / "site", BRIGHT, fault))
    out = tmp_path / "found.csv"
    ran = run_cli(
        "predict", checkpoint, data, "--out", out, "--fallback", "prevalence", "--workers", 2, *options, env=env
    )
    assert ran.code == 8, ran.text
    assert "Traceback" not in ran.text
    assert f"failed {BRIGHT}: {reason}" in ran.err
    rows = rows_of(out)
    assert [uid for uid in UIDS if rows[uid]["status"] == "predicted"] == [u for u in UIDS if u != BRIGHT]
    assert (rows[BRIGHT]["status"], rows[BRIGHT]["reason"]) == ("failed", reason)
    assert float(rows[BRIGHT][LABELS[13]]) == 0.43


def test_a_reader_that_hangs_does_not_outlive_a_run_that_is_stopped(data, checkpoint, tmp_path):
    env = environment(first_path=hooks.write_hook(tmp_path / "site", BRIGHT, hooks.HANGS))
    process = start_cli("predict", checkpoint, data, "--out", tmp_path / "found.csv", env=env)
    try:
        assert wait_until(lambda: len(group_members(process)) > 1, process)
        time.sleep(5)  # it is at the series that hangs, or nearly so
        process.terminate()
        assert process.wait(20) == 143
        assert_group_ends(process)
    finally:
        end_all()


def test_limits_that_are_none_are_refused(data, checkpoint):
    ran = call_cli("predict", checkpoint, data, "--timeout-s", "0")
    assert ran.code == 2, ran.text
    assert "--timeout-s 0: give a number, more than 0" in ran.err


def test_readers_work_for_the_python_interface_too(data, checkpoint):
    answers = load_predictor([checkpoint], workers=2).predict(find_paths(data))
    assert next(answers).series_uid == UIDS[0]
    answers.close()  # what is being read is dropped


@pytest.mark.parametrize(
    "gpus, device, devices, expected",
    [
        (0, "auto", 1, ["cpu"]),
        (0, "auto", "auto", ["cpu"]),
        (0, "cpu", 3, ["cpu"] * 3),
        (2, "auto", 1, ["cuda"]),
        (2, "auto", "auto", ["cuda:0", "cuda:1"]),
        (4, "cuda", 2, ["cuda:0", "cuda:1"]),
        (4, "cpu", "auto", ["cpu"]),
        (4, "cuda:2", 1, ["cuda:2"]),
    ],
)
def test_the_device_of_each_process(monkeypatch, gpus, device, devices, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("aneurysm.models.device.usable_cpus", lambda: 3)
    assert device_names(device, devices) == expected


@pytest.mark.parametrize(
    "device, devices, words",
    [
        ("auto", 3, "--devices 3: there are 2 GPUs here"),
        ("gpu", 1, "there is no device 'gpu'"),
        ("cuda:2", 1, "there is no cuda:2: GPUs that can be used here: 2"),
        ("mps", "auto", "there is no device 'mps'"),
        ("cuda:1", 2, "cuda:1 is one device, and 2 were asked for"),
        ("cpu", 4, "--devices 4: without a GPU .* 3 CPUs may be used here. Give at most 3"),
    ],
)
def test_devices_that_are_not_there(monkeypatch, device, devices, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("aneurysm.models.device.usable_cpus", lambda: 3)
    with pytest.raises(UsageError, match=words):
        device_names(device, devices)
