"""A run's folder; and that a run that was stopped anywhere and goes on ends with the same bits as one that was not."""

from __future__ import annotations

import csv
import os
import signal

import numpy as np
import pytest
import torch

from aneurysm.errors import (
    CacheError,
    DeviceMemoryError,
    DivergedError,
    InterruptedRunError,
    NoSpaceError,
    SpecMismatchError,
    UsageError,
)
from aneurysm.inference.windows import predict_cached
from aneurysm.labels import LABELS
from aneurysm.report.evaluate import EvaluateOptions, evaluate
from aneurysm.report.run import read_run
from aneurysm.training.checkpoint import load_checkpoint, read_file
from aneurysm.training.config_file import config_table, parse_resolved, read_resolved
from aneurysm.training.fit import fit
from aneurysm.training.folds import read_folds
from aneurysm.training.progress import Silent
from aneurysm.training.run_folder import RunFolder
from tests.patches.conftest import add_volume, open_cache
from tests.training.conftest import make_cache, quick

pytestmark = pytest.mark.timeout(120)


def table(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [
        {k: v for k, v in row.items() if k not in ("patches_per_s", "idle_share", "train_s", "val_s")} for row in rows
    ]


def assert_same(left, right, at: str = "") -> None:
    """Equal to the bit, but for times."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), at
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), at
        for key in left:
            assert_same(left[key], right[key], f"{at}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), at
        for i, (a, b) in enumerate(zip(left, right)):
            assert_same(a, b, f"{at}/{i}")
    else:
        assert left == right, at


LEARNT = ("model", "state_dict", "optimizer_states", "lr_schedulers", "loader", "epoch", "global_step", "metrics")


@pytest.fixture(scope="module")
def straight(train_cache, tmp_path_factory) -> RunFolder:
    """Two epochs without a stop."""
    folder = RunFolder(tmp_path_factory.mktemp("straight") / "run")
    fit(quick(train_cache), folder)
    return folder


class Stops(Silent):
    """Sends this process a signal after a step, or after a series of validation."""

    def __init__(self, *, step=None, validating=None, number=signal.SIGTERM):
        self.at_step, self.at_series, self.number = step, validating, number

    def step(self, facts):
        if self.at_step == (facts.epoch, facts.step):
            os.kill(os.getpid(), self.number)

    def validating(self, done, total):
        if self.at_series == done:
            self.at_series = None
            os.kill(os.getpid(), self.number)


def test_the_folder_holds_what_is_promised(straight, train_cache):
    assert sorted(p.name for p in straight.root.iterdir()) == [
        "candidates_val.csv", "checkpoints", "config.toml", "folds.csv", "log.txt", "metrics.csv",
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
        assert all(0 < float(row[f"p: {name}"]) < 1 for name in LABELS)
    about = ["series_uid", "modality", "fold", "part", "epoch", "digest"]
    assert list(predictions[0])[:7] == [*about, f"p: {LABELS[0]}"]
    epoch = str(load_checkpoint(straight.best).epoch)
    assert {(p["part"], p["epoch"], p["digest"]) for p in predictions} == {("val", epoch, train_cache.spec.digest)}

    log = straight.log.read_text()
    assert "epoch 2: loss " in log
    assert "all that is known is of one class" in log
    assert list(straight.tensorboard.glob("events*"))


def test_a_checkpoint_carries_what_predicting_takes(straight, train_cache):
    for path in (straight.last, straight.best):
        content = torch.load(path, weights_only=True)
        assert content["labels"] == list(LABELS)
        assert content["digest"] == train_cache.spec.digest
        assert content["package_version"]
        assert parse_resolved(content["config"], "checkpoint") == read_resolved(straight.config)
        checkpoint = load_checkpoint(path)
        model = checkpoint.build_model("tests.training.tiny:classifier")
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
    model, config = best.build_model("tests.training.tiny:classifier"), best.config
    found = predict_cached(
        model,
        train_cache,
        [train_cache.uids.index(uid) for uid in rows],
        patch_shape=config.patch,
        pooling=config.validation.pooling,
        overlap=config.validation.overlap,
        batch_size=config.validation.batch_size,
    )
    for prediction in found:
        row = rows[prediction.series_uid]
        assert [float(row[f"p: {name}"]) for name in LABELS] == pytest.approx(prediction.probabilities, rel=1e-4)


def test_the_candidates_are_those_of_the_best_checkpoint_and_evaluate_reads_them(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache, model="tests.training.tiny:mapper"), folder)
    best, run = load_checkpoint(folder.best), read_run(folder.root)
    expected = predict_cached(
        best.build_model("tests.training.tiny:mapper"),
        train_cache,
        [train_cache.uids.index(uid) for uid in run.predictions.uids],
        patch_shape=best.config.patch,
        overlap=best.config.validation.overlap,
        candidates=10,
    )
    assert set(run.candidates.uids) == set(run.predictions.uids)
    for prediction in expected:
        mine = run.candidates.uids == prediction.series_uid
        assert run.candidates.sites[mine].tolist() == [c.site for c in prediction.candidates]
        assert run.candidates.probabilities[mine] == pytest.approx([c.probability for c in prediction.candidates])
        assert np.allclose(run.candidates.lps_mm[mine], [c.lps_mm for c in prediction.candidates], atol=1e-3)
    row = table(folder.candidates)[0]
    affine = train_cache.volume(row["series_uid"]).affine_lps
    zyx = [float(row[k]) for k in "zyx"]
    assert affine @ [*zyx, 1] == pytest.approx([*(float(row[k]) for k in ("x_mm", "y_mm", "z_mm")), 1], abs=2e-3)
    found = evaluate([folder.root], EvaluateOptions(cache=train_cache.root, samples=50))
    assert found.froc is not None
    assert found.froc.n_scans == len(run.predictions)


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


def test_weights_of_the_positives_follow_from_the_patches(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache, epochs=1, pos_weight="auto"), folder)
    weights = read_resolved(folder.config).pos_weight
    assert isinstance(weights, tuple)
    assert all(1 <= w <= 100 for w in weights)
    assert weights[-1] == min(weights)
    assert load_checkpoint(folder.last).config.pos_weight == weights


def test_a_run_that_is_through_has_nothing_to_do_but_can_be_made_longer(train_cache, tmp_path):
    folder = RunFolder(tmp_path / "run")
    fit(quick(train_cache, epochs=1), folder)
    before = folder.last.read_bytes()
    assert fit(quick(train_cache, epochs=1), folder, resume=True).epochs_now == 0
    assert folder.last.read_bytes() == before
    assert fit(quick(train_cache, epochs=2), folder, resume=True).epochs_now == 1
    assert [r["epoch"] for r in table(folder.metrics)] == ["1", "2"]


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
    cache = open_cache(tmp_path)
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
    config = quick(train_cache, epochs=1, steps_per_epoch=1, optimizer__learning_rate=1e-12)
    fit(config, folder, init=straight.best)
    begun, before = load_checkpoint(folder.last).weights, load_checkpoint(straight.best).weights
    assert torch.allclose(begun["head.weight"], before["head.weight"], atol=1e-6)
    with pytest.raises(UsageError, match="there is no checkpoint"):
        fit(config, RunFolder(tmp_path / "other"), init=tmp_path / "none.ckpt")


def test_without_an_auc_the_lowest_loss_is_the_best(tmp_path):
    cache = make_cache(tmp_path, 9, sites=(4,), places=[(18, 20, 22)])
    folder = RunFolder(tmp_path / "run")
    fit(quick(cache), folder)
    rows = table(folder.metrics)
    assert {row["score"] for row in rows} == {""}
    assert load_checkpoint(folder.best).epoch == min((float(r["loss"]), int(r["epoch"])) for r in rows)[1]
    assert "only positives: there is no AUC" in folder.log.read_text()


class TestErrors:
    def test_a_loss_that_is_no_number_ends_the_run_and_names_series_and_step(self, train_cache, tmp_path):
        folder = RunFolder(tmp_path / "run")
        with pytest.raises(DivergedError, match=r"epoch 1 at step 1 .* series 1\.\d+.*: try a lower learning rate"):
            fit(quick(train_cache, model="tests.training.tiny:broken"), folder)
        assert not folder.last.exists()
        assert "ended by DivergedError" in folder.log.read_text()

    def test_the_last_good_checkpoint_stays(self, train_cache, straight, tmp_path, monkeypatch):
        folder = RunFolder(tmp_path / "run")
        fit(quick(train_cache, epochs=1), folder)
        before = folder.last.read_bytes()
        monkeypatch.setattr("tests.training.tiny.Tiny.forward", infinite(torch.nn.Module.forward))
        with pytest.raises(DivergedError, match="epoch 2"):
            fit(quick(train_cache, epochs=2), folder, resume=True)
        assert folder.last.read_bytes() == before

    def test_intensities_that_are_no_numbers_are_told_by_their_series(self, tmp_path):
        cache = make_cache(tmp_path)
        metadata = tmp_path / "volumes" / "1.5.zarr" / "zarr.json"
        metadata.write_text(metadata.read_text().replace('"scale": 2.0', '"scale": NaN'))
        cache = open_cache(tmp_path)
        config = quick(cache, fold=int(next(f for f in range(3) if "1.5" not in held_out(cache, f))))
        with pytest.raises(DivergedError, match=r"series 1\.5: their intensities are not finite: run aneurysm verify"):
            fit(config, RunFolder(tmp_path / "run"))

    def test_a_folder_with_a_run_is_refused(self, train_cache, straight):
        with pytest.raises(UsageError, match=r"holds a run\. Go on with it: --out .* --resume"):
            fit(quick(train_cache), straight)

    def test_a_damaged_volume_ends_validation_and_the_run_goes_on_with_it(self, tmp_path, straight):
        cache = make_cache(tmp_path)
        config = quick(cache)
        uid = held_out(cache, 0)[0]
        chunk = tmp_path / "volumes" / f"{uid}.zarr" / "0/c/0/0/0"
        content = chunk.read_bytes()
        chunk.write_bytes(bytes(len(content)))
        folder = RunFolder(tmp_path / "run")
        with pytest.raises(CacheError, match=f"validation can't go on: .*{uid}"):
            fit(config, folder)
        chunk.write_bytes(content)
        fit(config, folder, resume=True)
        assert timeless(table(folder.metrics)) == timeless(table(straight.metrics))

    def test_a_cache_of_another_spec_or_with_other_series_is_not_gone_on_with(self, train_cache, tmp_path):
        folder = RunFolder(tmp_path / "run")
        fit(quick(train_cache, epochs=1), folder)
        fewer = make_cache(tmp_path / "fewer", 11)
        with pytest.raises(UsageError, match=r"has other series than when the run began \(1 came or went, as 1\.11\)"):
            fit(quick(fewer), folder, resume=True)
        finer = tmp_path / "finer"
        add_volume(finer, "1.0", shape=(30, 30, 30), spec="rsna-head-0.5mm", sites=(4,))
        with pytest.raises(SpecMismatchError, match="was trained on a cache of digest"):
            fit(quick(open_cache(finer, "rsna-head-0.5mm")), folder, resume=True)

    def test_a_full_disk_leaves_the_last_checkpoint(self, train_cache, tmp_path, monkeypatch):
        folder = RunFolder(tmp_path / "run")
        fit(quick(train_cache, epochs=1), folder)
        before = folder.last.read_bytes()

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("aneurysm.training.checkpoint.os.fsync", full)
        with pytest.raises(NoSpaceError, match=r"can't be saved; .* is still the one before"):
            fit(quick(train_cache, epochs=2), folder, resume=True)
        assert folder.last.read_bytes() == before
        assert sorted(p.name for p in folder.last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]

    def test_a_full_disk_while_tables_are_written_is_told(self, train_cache, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("aneurysm.training.metrics_table.MetricsTable.add", full)
        with pytest.raises(NoSpaceError, match=r"is full\. The last checkpoint is whole"):
            fit(quick(train_cache), RunFolder(tmp_path / "run"))

    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator")]
    )
    def test_out_of_memory_says_what_was_used_and_what_to_lower(self, train_cache, tmp_path, monkeypatch, error):
        def out_of_memory(self, image):
            raise error

        monkeypatch.setattr("tests.training.tiny.Tiny.forward", out_of_memory)
        with pytest.raises(
            DeviceMemoryError, match=r"batches of 4 patches of 16x16x16 voxels in fp32.*Lower --batch-size"
        ):
            fit(quick(train_cache), RunFolder(tmp_path / "run"))


def infinite(_forward):
    from aneurysm.models.output import ModelOutput

    return lambda self, image: ModelOutput(self.head.bias.expand(len(image), 14) / 0)


def held_out(cache, fold: int) -> list[str]:
    from aneurysm.training.split import split_series

    return [cache.uids[i] for i in split_series(cache, quick(cache, fold=fold)).val]
