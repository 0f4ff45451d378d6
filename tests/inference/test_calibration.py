"""Temperatures and the gate with known numbers; and which checkpoints a calibration is for."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from aneurysm.errors import UsageError
from aneurysm.inference.calibration import Adjustment, base_rates, find_calibration, own_calibration, read_calibration
from aneurysm.labels import LABELS
from aneurysm.probability import apply_temperature, sigmoid
from tests.support.calibrations import write_calibration
from tests.support.checkpoints import PREVALENCE, write_checkpoint

PROBABILITIES = np.array([0.75] * 13 + [0.9])


@pytest.fixture
def checkpoints(tmp_path):
    """Two runs' best checkpoints: only their bytes count here."""
    paths = []
    for name in ("a", "b"):
        path = tmp_path / name / "checkpoints" / "best.ckpt"
        path.parent.mkdir(parents=True)
        path.write_text(name)
        paths.append(path)
    return paths


def test_as_it_stands_nothing_is_changed():
    assert Adjustment()(PROBABILITIES) == PROBABILITIES.tolist()


def test_logits_are_divided_by_the_temperature_of_their_label(checkpoints, tmp_path):
    temperatures = [2.0, 0.5, None] + [1.0] * 10 + [2.0]
    found = read_calibration(write_calibration(tmp_path / "c.json", checkpoints[:1], temperatures))
    given = Adjustment(found)(PROBABILITIES)
    # Odds of 3 to the power of 1/2 and of 2; odds of 9 to the power of 1/2.
    odds = [np.sqrt(3), 9.0] + [3.0] * 11 + [3.0]
    assert given == pytest.approx([o / (1 + o) for o in odds], rel=1e-6)
    # To the bit as the evaluation does it, so that its thresholds decide alike about what `predict` gives.
    assert given[0] == float(apply_temperature(0.75, 2.0))
    assert given[2:12] == [0.75] * 10


def test_the_surest_keep_their_order(checkpoints, tmp_path):
    found = read_calibration(write_calibration(tmp_path / "c.json", checkpoints[:1], 2.0))
    given = Adjustment(found)(sigmoid(np.linspace(18, 31, 14)))
    assert (np.diff(given) > 0).all()


@pytest.mark.parametrize("alpha, factor", [(0.0, 1.0), (1.0, 0.9), (0.5, 0.9**0.5), (2.0, 0.81)])
def test_the_gate_multiplies_sites_by_a_power_of_present(alpha, factor):
    given = Adjustment(gate=alpha)(PROBABILITIES)
    assert given[:13] == pytest.approx([0.75 * factor] * 13)
    assert given[13] == pytest.approx(0.9)


def test_the_gate_comes_after_the_temperatures(checkpoints, tmp_path):
    found = read_calibration(write_calibration(tmp_path / "c.json", checkpoints[:1], [None] * 13 + [2.0]))
    given = Adjustment(found, gate=1.0)(PROBABILITIES)
    assert given == pytest.approx([0.75 * 0.75] * 13 + [0.75], rel=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_a_gate_that_is_none(alpha):
    with pytest.raises(UsageError, match="the gate is"):
        Adjustment(gate=alpha)


def test_it_fits_the_checkpoints_that_it_was_fitted_to_wherever_they_lie(checkpoints, tmp_path):
    shutil.copy(checkpoints[0], tmp_path / "copy.ckpt")
    found = read_calibration(write_calibration(tmp_path / "report" / "calibration.json", checkpoints).parent)
    found.check([tmp_path / "copy.ckpt"])
    found.check(checkpoints[::-1])
    (tmp_path / "copy.ckpt").write_text("trained on")
    with pytest.raises(UsageError, match=r"fitted to the best checkpoint of run0, run1, which .*copy.ckpt is not"):
        found.check([checkpoints[0], tmp_path / "copy.ckpt"])


def test_that_of_an_average_wants_all(checkpoints, tmp_path):
    found = read_calibration(write_calibration(tmp_path / "c.json", checkpoints, averaged=True))
    found.check(checkpoints)
    with pytest.raises(UsageError, match="average of run0, run1: name all 2 checkpoints, not 1"):
        found.check(checkpoints[:1])


def test_one_that_names_no_checkpoint_is_refused(checkpoints, tmp_path):
    found = read_calibration(write_calibration(tmp_path / "c.json", [None]))
    with pytest.raises(UsageError, match=r"run0 had no checkpoints/best\.ckpt when it was evaluated"):
        found.check(checkpoints[:1])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"format_version": 1}, "format version 1, not 2: evaluate again"),
        ({"labels": {"Somewhere": {}}}, "of other labels: "),
        ({"labels": 3}, "no calibration of"),
        ({"runs": ["run0"]}, "no calibration of"),
        ({"temperatures": "hot"}, "no calibration of"),
        ({"temperatures": 0.0}, "not a number above 0"),
        ({"temperatures": -2.0}, "not a number above 0"),
        ({"temperatures": float("nan")}, "not a number above 0"),
        ({"temperatures": None}, "holds no temperature"),
    ],
)
def test_a_file_that_is_none_is_told(checkpoints, tmp_path, changes, words):
    path = write_calibration(tmp_path / "c.json", checkpoints, **changes)
    with pytest.raises(UsageError, match=words):
        read_calibration(path)


def test_a_file_that_is_not_there_or_not_json(tmp_path):
    with pytest.raises(UsageError, match="can't be read"):
        read_calibration(tmp_path / "none.json")
    (tmp_path / "c.json").write_bytes(b"\xff{")
    with pytest.raises(UsageError, match="no calibration of"):
        read_calibration(tmp_path / "c.json")


def test_a_runs_own_is_found_beside_it(checkpoints):
    best = checkpoints[0]
    assert own_calibration(best) is None
    path = write_calibration(best.parent.parent / "evaluation" / "calibration.json", checkpoints[:1])
    assert find_calibration(best) == path
    assert own_calibration(best).temperatures == (2.0,) * len(LABELS)
    assert find_calibration(best.with_name("last.ckpt")) is None
    best.write_text("trained on")
    with pytest.raises(UsageError, match="or no longer"):
        own_calibration(best)
    write_calibration(path, checkpoints)
    with pytest.raises(UsageError, match="fitted to 2 runs together"):
        own_calibration(best)


def test_base_rates_are_the_mean_over_the_checkpoints(tmp_path):
    one = write_checkpoint(tmp_path / "a.ckpt", 0)
    two = write_checkpoint(tmp_path / "b.ckpt", 0, prevalence=[0.0] * 13 + [0.5])
    assert base_rates([one]) == dict(zip(LABELS, PREVALENCE))
    found = base_rates([one, two])
    assert found[LABELS[0]] == pytest.approx(0.005)
    assert found[LABELS[13]] == pytest.approx(0.465)


@pytest.mark.parametrize(
    "prevalence, words", [(None, "older version"), ([0.1] * 12 + [None, 0.4], "Other Posterior Circulation was not")]
)
def test_a_checkpoint_that_does_not_know_its_base_rates(tmp_path, prevalence, words):
    path = write_checkpoint(tmp_path / "a.ckpt", 0, prevalence=prevalence)
    with pytest.raises(UsageError, match=words):
        base_rates([path])
