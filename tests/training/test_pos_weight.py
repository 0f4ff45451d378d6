"""What the positives weigh."""

from __future__ import annotations

import pytest

from aneurysm.patches.plan import Plan, Sampling
from aneurysm.training.objective import MAX_POS_WEIGHT, positive_weights
from tests.support.noise_cache import add_volume, finish_cache


def test_patches_without_a_label_over_those_with(tmp_path):
    add_volume(tmp_path, "1.1", sites=(0,), patient="a")
    add_volume(tmp_path, "1.2", sites=(0,), patient="b")
    add_volume(tmp_path, "1.3", sites=(5,), patient="c")
    add_volume(tmp_path, "1.4", sites=(), patient="d")
    cache = finish_cache(tmp_path)
    plan = Plan(cache, range(4), Sampling(lesion=0.5, vessel=0, foreground=0, uniform=0.5), 4000, 8, 0)
    weights = positive_weights(cache, plan, (8, 8, 8))
    # Three series of four have a lesion, half of their patches are about it: 3/8 of all, 1/4 at site 0, 1/8 at site 5.
    assert weights[-1] == pytest.approx(5 / 3, rel=0.1)
    assert weights[0] == pytest.approx(3, rel=0.1)
    assert weights[5] == pytest.approx(7, rel=0.1)
    assert weights[1] == MAX_POS_WEIGHT


def test_lesions_everywhere_weigh_no_less_than_one(tmp_path):
    add_volume(tmp_path, "1.1", sites=(0,))
    cache = finish_cache(tmp_path)
    plan = Plan(cache, [0], Sampling(lesion=1.0, vessel=0, foreground=0, uniform=0), 40, 8, 0)
    assert positive_weights(cache, plan, (8, 8, 8))[-1] == 1.0


def test_whole_volumes_count_by_their_labels(tmp_path):
    for number in range(4):
        add_volume(tmp_path, f"1.{number}", shape=(8, 8, 8), sites=(2,) if number == 0 else ())
    cache = finish_cache(tmp_path)
    plan = Plan(cache, range(4), Sampling(lesion=0, vessel=0, foreground=0, uniform=1), 4000, 8, 0)
    weights = positive_weights(cache, plan, (8, 8, 8))
    assert weights[-1] == weights[2] == pytest.approx(3, rel=0.1)
    assert weights[0] == MAX_POS_WEIGHT
