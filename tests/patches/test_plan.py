"""What an epoch is made of: shares, balance, no series twice in a batch, and nothing but (seed, epoch) behind it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from aneurysm.cache.cache import Cache
from aneurysm.errors import SamplingError
from aneurysm.labels import LABELS, MODALITIES, UNKNOWN
from aneurysm.patches.plan import Plan, Sampling
from aneurysm.spec import load_spec


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    """200 series that exist in tables alone: modalities as unequal as RSNA's, a third with one to three lesions."""
    rng = np.random.default_rng(5)
    n = 200
    sites = [rng.choice(13, rng.integers(1, 4), p=np.arange(13, 0, -1) / 91) if i % 3 == 0 else [] for i in range(n)]
    labels = np.zeros((n, 14), np.uint8)
    for i, of in enumerate(sites):
        labels[i, [*of, 13] if len(of) else []] = 1
    labels[1] = UNKNOWN
    return Cache(
        root=tmp_path_factory.mktemp("no_volumes"),
        spec=load_spec("rsna-1mm"),
        uids=[f"1.{i}" for i in range(n)],
        shapes=np.full((n, 3), 150, np.int32),
        labels=labels,
        modalities=[MODALITIES[k] for k in rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])],
        patient_keys=[""] * n,
        unlocated=np.zeros((n, 13), bool),
        lesion_volume=np.array([i for i, of in enumerate(sites) for _ in of], np.int32),
        lesion_site=np.array([s for of in sites for s in of], np.uint8),
        lesion_zyx=np.full((sum(map(len, sites)), 3), 70, np.float32),
    )


def plan(cache, samples=4000, batch=8, seed=1, volumes=range(200), **sampling) -> Plan:
    return Plan(cache, volumes, Sampling(**sampling), samples, batch, seed)


@pytest.mark.parametrize("balance", ["natural", "label", "stratified"])
def test_an_epoch_follows_from_seed_and_number(cache, balance):
    first = list(plan(cache, balance=balance).epoch(3))
    assert list(plan(cache, balance=balance).epoch(3)) == first
    assert [d.index for d in first] == list(range(4000))
    for other in (list(plan(cache, balance=balance).epoch(4)), list(plan(cache, balance=balance, seed=2).epoch(3))):
        assert [d.volume for d in other] != [d.volume for d in first]


@pytest.mark.parametrize("balance", ["natural", "label", "stratified"])
def test_no_series_comes_twice_in_a_batch(cache, balance):
    draws = list(plan(cache, balance=balance, lesion=0.2, vessel=0.8, batch=8).epoch(0))
    twice = sum(len({d.volume for d in draws[i : i + 8]}) < 8 for i in range(0, len(draws), 8))
    # Some strata of label and modality hold a single series: these must come again.
    assert twice == 0 or (balance == "stratified" and twice < 0.1 * len(draws) / 8)


def test_more_patches_than_series_in_a_batch_repeat_no_more_than_they_must(cache):
    draws = list(plan(cache, samples=70, batch=7, volumes=range(3)).epoch(0))
    for i in range(0, 70, 7):
        assert sorted(Counter(d.volume for d in draws[i : i + 7]).values()) == [2, 2, 3]


def test_natural_takes_every_series_equally_often(cache):
    counts = Counter(d.volume for d in list(plan(cache, samples=2000).epoch(0)))
    assert set(counts.values()) <= {9, 10, 11}
    assert len(counts) == 200


def test_weights_are_the_shares_of_the_samplers(cache):
    weights = {"lesion": 1.0, "vessel": 2.0, "foreground": 4.0, "uniform": 1.0}
    kinds = Counter(d.kind for d in list(plan(cache, samples=8000, balance="label", **weights).epoch(0)))
    for kind, weight in weights.items():
        assert kinds[kind] / 8000 == pytest.approx(weight / 8, abs=0.02)


def test_natural_draws_about_lesions_only_where_there_are_some(cache):
    draws = list(plan(cache, samples=6000, lesion=0.5, vessel=0.5, foreground=0, uniform=0).epoch(0))
    kinds = Counter((bool(cache.labels[d.volume, 13] == 1), d.kind) for d in draws)
    assert kinds[False, "lesion"] == 0
    assert kinds[True, "lesion"] / (kinds[True, "lesion"] + kinds[True, "vessel"]) == pytest.approx(0.5, abs=0.03)
    for d in draws:
        assert (d.lesion >= 0) == (d.kind == "lesion")
        assert d.lesion < 0 or cache.lesion_volume[d.lesion] == d.volume


def test_label_balance_makes_sites_equally_frequent(cache):
    draws = list(plan(cache, samples=6000, lesion=1, vessel=1, foreground=0, uniform=0, balance="label").epoch(0))
    sites = Counter(int(cache.lesion_site[d.lesion]) for d in draws if d.kind == "lesion")
    there = set(cache.lesion_site.tolist())
    assert set(sites) == there
    assert max(sites.values()) - min(sites.values()) <= 1
    present = Counter(bool(cache.labels[d.volume, 13] == 1) for d in draws if d.kind == "vessel")
    assert abs(present[True] - present[False]) <= 1


def test_stratified_balance_makes_pairs_of_label_and_modality_equally_frequent(cache):
    draws = list(plan(cache, samples=9000, lesion=1, vessel=1, foreground=0, uniform=0, balance="stratified").epoch(0))
    pairs = Counter((int(cache.lesion_site[d.lesion]), cache.modalities[d.volume]) for d in draws if d.kind == "lesion")
    there = {(int(s), cache.modalities[v]) for s, v in zip(cache.lesion_site, cache.lesion_volume)}
    assert set(pairs) == there
    assert max(pairs.values()) - min(pairs.values()) <= 1


def test_every_lesion_of_a_site_has_its_turn(cache):
    draws = list(plan(cache, samples=3000, lesion=1, vessel=0, foreground=0, uniform=0, balance="label").epoch(0))
    counts = Counter(d.lesion for d in draws)
    assert len(cache.lesion_site) > 0
    for site in set(cache.lesion_site.tolist()):
        of = [counts[r] for r in np.flatnonzero(cache.lesion_site == site)]
        assert min(of) >= 1
        assert max(of) - min(of) <= 2


def test_only_the_volumes_given_are_drawn_from(cache):
    volumes = list(range(0, 200, 7))
    for balance in ("natural", "label", "stratified"):
        draws = list(plan(cache, volumes=volumes, balance=balance).epoch(0))
        assert {d.volume for d in draws} <= set(volumes)


def test_without_lesions_the_other_samplers_share_their_weight(cache):
    none = replace(cache, lesion_volume=np.empty(0, np.int32), lesion_site=np.empty(0, np.uint8))
    kinds = Counter(d.kind for d in list(plan(none, lesion=0.5, vessel=0.3, foreground=0.2, uniform=0).epoch(0)))
    assert kinds.keys() == {"vessel", "foreground"}
    assert kinds["vessel"] / 4000 == pytest.approx(0.6, abs=0.03)


def test_what_can_not_be_drawn_is_said(cache):
    none = replace(cache, lesion_volume=np.empty(0, np.int32), lesion_site=np.empty(0, np.uint8))
    with pytest.raises(SamplingError, match="no volume"):
        plan(cache, volumes=[])
    with pytest.raises(SamplingError, match="no lesion has a place"):
        plan(none, lesion=1, vessel=0, foreground=0, uniform=0)
    with pytest.raises(SamplingError, match="at least 0"):
        plan(cache, lesion=-1)
    with pytest.raises(SamplingError, match="one above it"):
        plan(cache, lesion=0, vessel=0, foreground=0, uniform=0)


def test_labels_are_as_long_as_the_cache_says(cache):
    assert cache.labels.shape[1] == len(LABELS)
