"""A run on pictures: it trains, validates, resumes, is saved with its view, and predicts from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aneurysm.cache.cache import Cache, open_cache
from aneurysm.errors import UsageError
from aneurysm.inference.predictor import load_predictor
from aneurysm.spec import load_spec
from aneurysm.training.checkpoint import load_checkpoint
from aneurysm.training.config_file import load_config
from aneurysm.training.fit import fit
from aneurysm.training.run_folder import RunFolder
from aneurysm.training.split import split_series
from tests.support.built import Built
from tests.support.command import call_cli
from tests.support.noise_cache import add_volume, finish_cache
from tests.support.train_runs import make_cache, quick, table

SMALL = {"patch": None, "model": "tests.support.tiny:classifier", "epochs": 1}


@pytest.mark.parametrize(
    "view, channels",
    [
        ({"name": "slices", "count": 3, "size_mm": 32}, 3), ({"name": "mip", "size_mm": 32}, 1),
        ({"name": "slab", "size_mm": 32}, 1), ({"name": "mip", "size_mm": 32, "how": ["max", "min"]}, 2),
    ],
    ids=["slices", "mip", "slab", "two reductions"],
)  # fmt: skip
def test_a_run_keeps_its_view_and_predicts_by_it(tmp_path, view, channels):
    cache = make_cache(tmp_path / "cache", 9)
    config = quick(cache, **SMALL, view=view, ct_windows_hu=["brain", [0, 600]])
    fit(config, RunFolder(tmp_path / "run"))
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert checkpoint.config.view == config.view
    assert checkpoint.config.ct_windows_hu == ((0, 80), (0, 600))
    assert checkpoint.weights["features.0.weight"].shape[1] == 2 * channels
    rows = {row["series_uid"]: row for row in table(tmp_path / "run" / "predictions_val.csv")}
    assert len(rows) == 3
    predictor = load_predictor(checkpoint.path, architecture=SMALL["model"], overlap=0.25)
    for uid, row in rows.items():
        answer = predictor(cache.volume(uid).path)
        assert answer.probabilities["Aneurysm Present"] == pytest.approx(float(row["Aneurysm Present"]), abs=1e-6)


def test_a_run_on_pictures_resumes_to_the_same_bit(tmp_path):
    cache = make_cache(tmp_path / "cache", 9)
    constant = {"optimizer__warmup": 0.0, "optimizer__final": 1.0}  # a schedule would be another one of two epochs
    options = {**SMALL, **constant, "view": {"name": "slices", "pick": "random", "size_mm": 32}}
    fit(quick(cache, **{**options, "epochs": 2}), RunFolder(tmp_path / "whole"))
    fit(quick(cache, **options), RunFolder(tmp_path / "parts"))
    fit(quick(cache, **{**options, "epochs": 2}), RunFolder(tmp_path / "parts"), resume=True)
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoints/last.ckpt").weights for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(np.array_equal(whole[name].numpy(), parts[name].numpy()) for name in whole)


def test_series_without_a_lesions_place_can_be_trained_on(tmp_path):
    for i in range(6):
        add_volume(tmp_path, f"1.{i}", patient=f"p{i}", shape=(36, 40, 44), unplaced=[(4, "no_frame")] if i % 2 else ())
    cache = finish_cache(tmp_path)
    with pytest.raises(UsageError, match="has a lesion whose place is known"):
        split_series(cache, quick(cache, fold=0))
    assert split_series(cache, quick(cache, **SMALL, view={"name": "mip"})).train


def test_what_can_not_be_taught_on_pictures_is_refused(tmp_path):
    cache = make_cache(tmp_path / "cache", 9)
    config = quick(cache, **{**SMALL, "model": "tests.support.tiny:mapper"}, view={"name": "mip", "size_mm": 32},
                   losses={"dense_top_k": 1.0})  # fmt: skip
    with pytest.raises(UsageError, match="a lesion map can't be taught on pictures"):
        fit(config, RunFolder(tmp_path / "run"))


def test_what_a_view_can_not_show_is_told(tmp_path):
    cache = make_cache(tmp_path / "int16", 9)
    flat = split_series(cache, quick(cache, **SMALL, view={"name": "mip", "planes": ["sagittal"]}))
    assert "show no left and right" in flat.warnings[-1]
    brain = {**SMALL, "view": {"name": "slices"}, "ct_windows_hu": ["brain"]}
    assert not [w for w in split_series(cache, quick(cache, **brain)).warnings if "grey levels" in w]
    cache = replace(cache, spec=load_spec("rsna-1mm-u8"))
    assert "grey levels in this cache" in split_series(cache, quick(cache, **brain)).warnings[-1]


@pytest.mark.parametrize(
    "text, words",
    [
        ('[view]\nname = "slices"\ncuont = 3', r"unknown key view.cuont: did you mean count\?"),
        ('[view]\nname = "slice"', "view"), ("[view]\ncount = 3", "view"),
        ('patch = [32, 32, 32]\n[view]\nname = "mip"', "of the view 'mip' the size is set in its own section"),
        ('ct_windows_hu = ["brian"]', "no window of CT 'brian'. There are brain"),
    ],
)  # fmt: skip
def test_a_wrong_view_is_named(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_a_map_of_the_volume_is_refused_of_a_model_of_pictures(tmp_path):
    cache = make_cache(tmp_path / "cache", 9)
    fit(quick(cache, **SMALL, view={"name": "mip", "size_mm": 32}), RunFolder(tmp_path / "run"))
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with pytest.raises(UsageError, match="it has candidates, but no map"):
        load_predictor(best, architecture=SMALL["model"], map_label="Aneurysm Present")


def test_candidates_of_pictures_have_their_places_in_the_dicom_files(built: Built, tmp_path: Path) -> None:
    """Slice and pixel lead to SOP instance, column and row, as those of other models do."""
    config = tmp_path / "mil.toml"
    config.write_text(
        'model = "attention-mil"\n[view]\nname = "slices"\ncount = 4\npick = "vascular"\nstack = "bag"\nsize_mm = 64\n'
    )
    run = tmp_path / "run"
    ran = call_cli("train", "--cache", built.cache, "--config", config, "--out", run, "--epochs", 1,
                   "--steps-per-epoch", 1, "--batch-size", 2, "--folds", 2, "--workers", 0, "--devices", 1)  # fmt: skip
    assert ran.code == 0, ran.text
    assert "begins from random weights" in ran.text
    assert "4 pictures of 64 x 64 pixels" in ran.text
    predictor = load_predictor(run / "checkpoints" / "best.ckpt", candidates=3)
    answer = predictor(built.data / "series" / built.uids[0])
    assert len(answer.candidates) == 3
    view = predictor.options.view
    volume = open_cache(built.cache).volume(built.uids[0])
    slices = {picture.first for picture in view.choose(volume)[0]}
    for candidate in answer.candidates:
        assert candidate.zyx[0] in slices
        assert candidate.source is not None
        assert candidate.source.sop_uid


def _marked(root: Path, n: int) -> Cache:
    """``n`` heads of noise; every other one has a bright ball somewhere."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[:48, :48, :48]
    for i in range(n):
        voxels = rng.normal(100, 60, (48, 48, 48))
        place = rng.integers(12, 36, 3)
        if i % 2:
            voxels[(z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2 <= 16] += 600
        add_volume(root, f"1.{i}", patient=f"p{i}", shape=(48, 48, 48), voxels=voxels.astype(np.int16),
                   sites=(4,) if i % 2 else (), places=[place] if i % 2 else None)  # fmt: skip
    return finish_cache(root)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "model, view",
    [
        ("attention-mil", {"name": "mip", "size_mm": 48}),
        ("attention-mil", {"name": "slices", "count": 12, "stack": "bag", "size_mm": 48}),
        ("efficientnet-b0", {"name": "mip", "size_mm": 48, "stack": "channels"}),
    ],
    ids=["attention-mil on projections", "attention-mil on slices", "efficientnet on projections"],
)
def test_it_learns_what_is_to_be_seen(tmp_path, model, view):
    """From labels of series alone, in a few minutes on a CPU, on series that it has not seen."""
    cache = _marked(tmp_path / "cache", 72)
    config = quick(cache, model=model, patch=None, view=view, batch_size=8, epochs=2, steps_per_epoch=40,
                   ct_windows_hu=[[-100, 900]], optimizer__learning_rate=2e-3, optimizer__ema_decay=0.9,
                   sampling__balance="label", validation__every=2)  # fmt: skip
    run = fit(config, RunFolder(tmp_path / "run"))
    assert run.metrics["present_auc"] > 0.8
