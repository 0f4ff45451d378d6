"""Files and options become one configuration; what is wrong in them is named."""

from __future__ import annotations

import tomllib

import pytest

from aneurysm.errors import UsageError
from aneurysm.models.registry import ARCHITECTURES
from aneurysm.training.config import TrainConfig
from aneurysm.training.config_file import config_table, config_toml, load_config, parse_resolved, read_resolved


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_options_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = write(tmp_path, "epochs = 3\nseed = 4\n[optimizer]\nlearning_rate = 0.5\nmomentum = 0.8\n")
    config = load_config(path, {"epochs": 5, "optimizer.learning_rate": 0.25, "augment.flip.left_right": 0.0})
    assert (config.epochs, config.seed, config.folds) == (5, 4, 5)
    assert (config.optimizer.learning_rate, config.optimizer.momentum) == (0.25, 0.8)
    assert config.augment.flip.left_right == 0.0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_model_brings_its_defaults(name):
    architecture = ARCHITECTURES[name]
    config = TrainConfig(model=name).resolved()
    assert config.view == architecture.view
    assert config.patch == (architecture.patch_shape if config.view.name == "patch3d" else None)
    assert config.batch_size == config.validation.batch_size == architecture.batch_size
    assert config.losses == dict(architecture.losses)
    assert config.optimizer.learning_rate == architecture.learning_rate
    assert config.validation.pooling == architecture.pooling


def test_what_was_said_stays(tmp_path):
    path = write(
        tmp_path, 'patch = [32, 48, 64]\nlosses = {focal = 2.0}\n[optimizer]\nname = "sgd"\nweight_decay = 0.0\n'
    )
    config = load_config(path).resolved()
    assert config.patch == (32, 48, 64)
    assert config.losses == {"focal": 2.0}
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (0.01, 0.0)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="defaults"),
        pytest.param(
            {
                "model": "unet3d",
                "model_options": {"vessels": True, "width": 0.5, "top_voxels": 8},
                "modality": ["CTA", "MRI T2"],
                "ct_windows_hu": [[0, 400], [-100, 900.5]],
                "pos_weight": [1.5] * 14,
                "folds_file": 'a "quoted" \\ name.csv',
                "limit_val": 3,
                "augment.affine.rotation_deg": [1e-7, 2, 3],
            },
            id="much set",
        ),
    ],
)
def test_the_resolved_configuration_comes_back_from_its_toml_and_table(tmp_path, options):
    config = load_config(None, options).resolved()
    path = write(tmp_path, config_toml(config))
    assert read_resolved(path) == config
    assert load_config(path).resolved() == config
    assert parse_resolved(config_table(config), "table") == config
    assert type(config.model_options.get("vessels", True)) is bool


@pytest.mark.parametrize(
    "text, words",
    [
        pytest.param("epoch = 3", "unknown key epoch: did you mean epochs?", id="nearest"),
        pytest.param(
            "[optimizer]\nlearning_rat = 1", "optimizer.learning_rat: did you mean learning_rate", id="section"
        ),
        pytest.param("[augment.flip]\nsideways = 1", "there are left_right, labels, front_back", id="none near"),
        pytest.param("epochs = 0", r"epochs: .*greater than or equal to 1 \(found 0\)", id="range"),
        pytest.param("patch = [32, 32]", "key patch.2 is missing", id="short patch"),
        pytest.param("[losses]\nbec = 1", "no loss 'bec'", id="loss"),
        pytest.param("[losses]\nbce = 0", "no loss has a weight above 0", id="no loss"),
        pytest.param("fold = 5", "no fold 5 of 5; they count from 0", id="fold"),
        pytest.param("pos_weight = [1.0, 2.0]", "2 values, expected 1 or 14", id="weights"),
        pytest.param("[validation]\npooling = 'mean'", "'mean' is none of max, mean-top, noisy-or", id="pooling"),
        pytest.param("sampling = 'label'", "sampling: ", id="no table"),
        pytest.param("epochs = ", "not valid TOML", id="no toml"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=words) as told:
        load_config(path)
    assert str(path) in str(told.value)


def test_a_file_that_is_not_there_is_an_error_of_the_users(tmp_path):
    with pytest.raises(UsageError, match="no configuration file"):
        load_config(tmp_path / "none.toml")


def test_an_unknown_model_is_named():
    with pytest.raises(UsageError, match="Did you mean resnet3d34"):
        TrainConfig(model="resnet34").resolved()


def test_steps_of_the_optimiser_count_the_rest_of_each_epoch():
    config = load_config(None, {"epochs": 3, "steps_per_epoch": 10, "optimizer.accumulate": 4})
    assert config.optimizer_steps == 9


def test_a_resolved_configuration_must_leave_nothing_open():
    with pytest.raises(UsageError, match="key view is missing"):
        parse_resolved(tomllib.loads("epochs = 3"), "a run")
