"""Prevalences of checkpoints, and the older ones that have none."""

import pytest

from aneurysm.errors import UsageError
from aneurysm.inference.base_rates import base_rates
from aneurysm.labels import LABELS
from tests.support.checkpoints import PREVALENCE, write_checkpoint


def test_they_are_the_mean_over_the_checkpoints(tmp_path):
    one = write_checkpoint(tmp_path / "a.ckpt", 0)
    two = write_checkpoint(tmp_path / "b.ckpt", 0, prevalence=[0.0] * 13 + [0.5])
    assert base_rates([one]) == dict(zip(LABELS, PREVALENCE))
    found = base_rates([one, two])
    assert found[LABELS[0]] == pytest.approx(0.005)
    assert found[LABELS[13]] == pytest.approx(0.465)


@pytest.mark.parametrize(
    "prevalence, words", [(None, "older version"), ([0.1] * 12 + [None, 0.4], "Other Posterior Circulation was not")]
)
def test_a_checkpoint_that_does_not_know_them(tmp_path, prevalence, words):
    path = write_checkpoint(tmp_path / "a.ckpt", 0, prevalence=prevalence)
    with pytest.raises(UsageError, match=words):
        base_rates([path])
