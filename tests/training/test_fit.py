"""A run's folder, and what a run learns from its configuration."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from aneurysm.errors import (
    UsageError,
)
from aneurysm.labels import LABELS
from aneurysm.patches.views.view import Box
from aneurysm.report.evaluate import evaluate
from aneurysm.report.evaluation import EvaluateOptions
from aneurysm.report.run import read_run
from aneurysm.training.checkpoint import load_checkpoint, read_file
from aneurysm.training.config_file import config_table, parse_resolved, read_resolved
from aneurysm.training.fit import fit
from aneurysm.training.folds import read_folds
from aneurysm.training.progress import Silent
from aneurysm.training.run_folder import RunFolder
from aneurysm.windows.predict import WindowOptions, predict_cached
from tests.support.noise_cache import add_volume, finish_cache
from tests.support.train_runs import assert_same, make_cache, quick, table, timeless

pytestmark = pytest.mark.timeout(120)


def test_fp16_is_refused_on_a_cpu(train_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--precision fp16 needs a GPU, and this runs on a CPU"):
        fit(quick(train_cache, precision="fp16"), RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_folder_holds_what_is_promised(straight, train_cache):
    assert sorted(p.name for p in straight.root.iterdir()) == [
        "checkpoints", "config.toml", "folds.csv", "log.txt", "metrics.csv",
        "predictions_val.csv", "tensorboard",
    ]  # fmt: skip
    assert sorted(p.name for p in straight.last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    config = read_resolved(straight.config)
    assert config.precision in ("fp32", "bf16")
    assert {**config_table(config), "precision": "auto"} == config_table(quick(train_cache))
    folds = read_folds(straight.folds, train_cache.uids, train_cache.patient_keys)

    rows = table(straight.metrics)
    assert [(r["epoch"], r["step"]) for r in rows] == [("1", "4"), ("2", "8")]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["loss: bce"]), rel=1e-4)
        assert 0 <= float(row["score"]) <= 1
        assert float(row["score"]) == pytest.approx((float(row["present_auc"]) + float(row["site_auc"])) / 2, abs=1e-5)
        assert row[f"auc: {LABELS[0]}"] == ""
        assert {"present_auc: CTA", "present_auc: MRA"} <= row.keys()

    predictions = table(straight.predictions)
    held_out = np.flatnonzero(folds == 0)
    assert [p["series_uid"] for p in predictions] == sorted(train_cache.uids[i] for i in held_out)
    for row in predictions:
        i = train_cache.uids.index(row["series_uid"])
        assert (row["modality"], row["fold"]) == (train_cache.modalities[i], "0")
        assert [int(row[f"y: {name}"]) for name in LABELS] == train_cache.labels[i].tolist()
        assert all(0 < float(row[name]) < 1 for name in LABELS)
        assert (row["status"], row["format_version"]) == ("predicted", "1")
        assert 1 <= len(json.loads(row["candidates"])) <= 10
    epoch = str(load_checkpoint(straight.best).epoch)
    assert {(p["part"], p["epoch"], p["digest"]) for p in predictions} == {("val", epoch, train_cache.spec.digest)}

    log = straight.log.read_text()
    assert "epoch 2: loss " in log
    assert "all that is known is of one class" in log
    assert list(straight.tensorboard.glob("events*"))


class Recorder(Silent):
    """Keeps the steps, and how far validation was."""

    def __init__(self):
        self.steps, self.validations = [], []

    def step(self, facts):
        self.steps.append(facts)

    def validating(self, *counts):
        self.validations.append(counts)


def test_the_loss_is_known_from_the_first_step_and_windows_of_validation_are_counted(train_cache, tmp_path):
    told = Recorder()
    fit(quick(train_cache, epochs=1, validation__batch_size=2), RunFolder(tmp_path / "run"), progress=told)
    assert len(told.steps) == 4
    assert all(facts.loss > 0 for facts in told.steps)
    assert told.validations[0] == (0, 4, 0, 0)
    assert told.validations[-1] == (4, 4, 0, 0)
    within = [counts for counts in told.validations if counts[3]]
    assert {done for done, *_ in within} == {0, 1, 2, 3}
    assert all(0 < window < windows for _, _, window, windows in within)


def test_a_checkpoint_carries_what_predicting_takes(straight, train_cache):
    for path in (straight.last, straight.best):
        content = torch.load(path, weights_only=True)
        assert content["labels"] == list(LABELS)
        assert f'digest = "{train_cache.spec.digest}"' in content["spec"]
        assert content["package_version"]
        assert parse_resolved(content["config"], "checkpoint") == read_resolved(straight.config)
        checkpoint = load_checkpoint(path)
        model = checkpoint.build_model("tests.support.tiny:classifier")
        assert not model.training
        assert set(checkpoint.weights) == set(model.state_dict())
        train = read_folds(straight.folds, train_cache.uids, train_cache.patient_keys) != 0
        assert checkpoint.prevalence == pytest.approx(train_cache.labels[train].mean(axis=0))
    best = load_checkpoint(straight.best)
    scores = {int(r["epoch"]): float(r["score"]) for r in table(straight.metrics)}
    assert best.epoch == max(scores, key=lambda epoch: (scores[epoch], -epoch))
    assert best.metrics["score"] == pytest.approx(scores[best.epoch], abs=1e-5)


def test_the_best_epochs_predictions_are_those_of_its_checkpoint(straight, train_cache):
    best = load_checkpoint(straight.best)
    rows = {row["series_uid"]: row for row in table(straight.predictions)}
    assert len(rows) > 0
    model, config = best.build_model("tests.support.tiny:classifier"), best.config
    options = WindowOptions(
        view=Box(config.patch),
        pooling=config.validation.pooling,
        overlap=config.validation.overlap,
        batch_size=config.validation.batch_size,
    )
    for prediction in predict_cached(model, train_cache, [train_cache.uids.index(uid) for uid in rows], options):
        row = rows[prediction.series_uid]
        assert [float(row[name]) for name in LABELS] == pytest.approx(prediction.probabilities, rel=1e-4)


def test_the_candidates_are_those_of_the_best_checkpoint_and_evaluate_reads_them(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache, model="tests.support.tiny:mapper"), folder)
    best, run = load_checkpoint(folder.best), read_run(folder.root)
    expected = predict_cached(
        best.build_model("tests.support.tiny:mapper"),
        train_cache,
        [train_cache.uids.index(uid) for uid in run.predictions.uids],
        WindowOptions(Box(best.config.patch), overlap=best.config.validation.overlap, candidates=10),
    )
    assert set(run.candidates.uids) == set(run.predictions.uids)
    for prediction in expected:
        mine = run.candidates.uids == prediction.series_uid
        assert run.candidates.sites[mine].tolist() == [c.site for c in prediction.candidates]
        assert run.candidates.probabilities[mine] == pytest.approx([c.probability for c in prediction.candidates])
        assert np.allclose(run.candidates.lps_mm[mine], [c.lps_mm for c in prediction.candidates], atol=1e-3)
    row = table(folder.predictions)[0]
    affine, candidate = train_cache.volume(row["series_uid"]).affine_lps, json.loads(row["candidates"])[0]
    assert affine @ [*candidate["zyx"], 1] == pytest.approx([*candidate["lps_mm"], 1], abs=1e-4)
    found = evaluate([folder.root], options=EvaluateOptions(cache=train_cache.root, samples=50))
    assert found.froc is not None
    assert found.froc.n_scans == len(run.predictions)


def test_weights_of_the_positives_follow_from_the_patches(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache, epochs=1, pos_weight="auto"), folder)
    weights = read_resolved(folder.config).pos_weight
    assert isinstance(weights, tuple)
    assert all(1 <= w <= 100 for w in weights)
    assert weights[-1] == min(weights)
    assert load_checkpoint(folder.last).config.pos_weight == weights


def test_the_same_seed_gives_the_same_run_and_another_another(train_cache, straight, tmp_path):
    runs = {}
    for seed in (0, 1):
        folder = RunFolder(tmp_path / str(seed))
        fit(quick(train_cache, seed=seed, folds_file=str(straight.folds)), folder)
        runs[seed] = folder
    assert timeless(table(runs[0].metrics)) == timeless(table(straight.metrics))
    assert timeless(table(runs[1].metrics)) != timeless(table(straight.metrics))


def test_dense_losses_vessels_and_windows_train(tmp_path):
    for i in range(9):
        add_volume(tmp_path, f"1.{i}", shape=(32, 36, 40), sites=(i % 3,) if i % 3 else (), mask=i % 2 == 0,
                   patient=f"p{i}")  # fmt: skip
    cache = finish_cache(tmp_path)
    config = quick(
        cache, model="unet3d", model_options={"width": 0.2, "vessels": True, "deep_supervision": True},
        patch=[32, 32, 32], batch_size=2, epochs=1, steps_per_epoch=2, ct_windows_hu=[[0, 300], [-50, 700]],
        losses={"focal": 1.0, "dense_top_k": 1.0, "dense_dice": 0.5, "vessels": 0.3}, pos_weight=2.0,
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    fit(config, folder)
    (row,) = table(folder.metrics)
    terms = {name: float(row[f"loss: {name}"]) for name in config.losses}
    assert all(0 < value < 10 for value in terms.values())
    weighted = sum(config.losses[name] * value for name, value in terms.items())
    assert float(row["loss"]) == pytest.approx(weighted, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_other_precisions_and_optimisers_learn(train_cache, tmp_path, precision, name):
    folder = RunFolder(tmp_path / "run")
    config = quick(
        train_cache, model="cnn3d", precision=precision, optimizer__name=name, channels_last=precision == "bf16",
        optimizer__learning_rate=0.01 if name == "adamw" else 0.1, steps_per_epoch=8, optimizer__clip_norm=0,
        optimizer__ema_decay=0,
    )  # fmt: skip
    fit(config, folder)
    losses = [float(row["loss"]) for row in table(folder.metrics)]
    assert losses[1] < losses[0]
    weights = load_checkpoint(folder.last).weights
    assert all(w.isfinite().all() for w in weights.values())
    assert_same(weights, {k.removeprefix("model."): v for k, v in read_file(folder.last)["state_dict"].items()})


def test_a_run_begins_from_the_weights_of_another(train_cache, straight, tmp_path):
    folder = RunFolder(tmp_path / "run")
    options = {"epochs": 1, "steps_per_epoch": 1, "optimizer__learning_rate": 1e-12}
    fit(quick(train_cache, init=str(straight.best), **options), folder)
    begun, before = load_checkpoint(folder.last).weights, load_checkpoint(straight.best).weights
    assert torch.allclose(begun["head.weight"], before["head.weight"], atol=1e-6)
    with pytest.raises(UsageError, match="there is no checkpoint"):
        fit(quick(train_cache, init=str(tmp_path / "none.ckpt"), **options), RunFolder(tmp_path / "other"))


def test_without_an_auc_the_lowest_loss_is_the_best(tmp_path):
    cache = make_cache(tmp_path, 9, sites=(4,), places=[(18, 20, 22)])
    folder = RunFolder(tmp_path / "run")
    fit(quick(cache), folder)
    rows = table(folder.metrics)
    assert {row["score"] for row in rows} == {""}
    assert load_checkpoint(folder.best).epoch == min((float(r["loss"]), int(r["epoch"])) for r in rows)[1]
    assert "only positives: there is no AUC" in folder.log.read_text()
