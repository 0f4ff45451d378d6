"""Which series are trained on and held out, and what is refused before hours are spent."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aneurysm import CacheWriter
from aneurysm.cache.cache import open_cache
from aneurysm.cache.tables import write_tables
from aneurysm.errors import DataError, UsageError
from aneurysm.training.split import _with_all_positives, split_series
from tests.support.cache_paths import volume_paths
from tests.support.noise_cache import add_volume, finish_cache
from tests.support.train_runs import make_cache, quick


def test_a_fold_of_patients_is_held_out(tmp_path):
    for i in range(12):
        add_volume(tmp_path, f"1.{i}", shape=(20, 20, 20), sites=(i % 3,) if i % 2 else (), patient=f"p{i // 2}")
    cache = finish_cache(tmp_path)
    held_out = []
    for fold in range(3):
        split = split_series(cache, quick(cache, fold=fold))
        assert sorted(split.train + split.val) == list(range(12))
        patients = [{cache.patient_keys[i] for i in side} for side in (split.train, split.val)]
        assert not patients[0] & patients[1]
        assert (split.folds[split.val] == fold).all()
        held_out += split.val
    assert sorted(held_out) == list(range(12))


def test_only_the_modalities_asked_for(train_cache):
    split = split_series(train_cache, quick(train_cache, modality=["MRA"]))
    assert {train_cache.modalities[i] for i in split.train + split.val} == {"MRA"}
    with pytest.raises(UsageError, match=r"no series .* has the modality 'MRI T2'; there are CTA, MRA"):
        split_series(train_cache, quick(train_cache, modality=["MRI T2"]))


def test_limits_keep_positives_and_negatives(train_cache):
    split = split_series(train_cache, quick(train_cache, limit_train=3, limit_val=2))
    assert (len(split.train), len(split.val)) == (3, 2)
    assert sorted(train_cache.labels[split.train, 13]) == [0, 1, 1]
    assert sorted(train_cache.labels[split.val, 13]) == [0, 1]
    again = split_series(train_cache, quick(train_cache, limit_train=3))
    assert again.train == split.train


def test_a_limit_that_keeps_positives_thins_the_others_alone(tmp_path):
    for i in range(24):
        add_volume(
            tmp_path, f"1.{i}", shape=(20, 20, 20), modality="CTA" if i % 3 else "MRA",
            sites=() if i % 4 else (4,), patient=f"p{i}",
        )  # fmt: skip
    cache = finish_cache(tmp_path)
    everything = split_series(cache, quick(cache))
    assert (len(everything.train), everything.limit) == (16, "")
    positives = [i for i in everything.train if cache.labels[i, 13] == 1]
    assert len(positives) == 4
    split = split_series(cache, quick(cache, limit_train=10, keep_positives=True, limit_val=3))
    assert len(split.train) == 10
    assert set(positives) < set(split.train) < set(everything.train)
    assert len(split.val) == 3
    assert split.limit == "limit_train takes 4 of 4 positive series, 6 of 12 others (CTA 4 of 8, MRA 2 of 4)"
    assert split_series(cache, quick(cache, limit_train=10, keep_positives=True)).train == split.train
    in_proportion = split_series(cache, quick(cache, limit_train=8))
    assert in_proportion.limit.startswith("limit_train takes 2 of 4 positive series, 6 of 12 others (")
    with pytest.raises(
        UsageError, match=r"keep_positives: 4 of the 16 series .* limit_train is 4, .* Give at least 5, or leave"
    ):
        split_series(cache, quick(cache, limit_train=4, keep_positives=True))
    assert len(split_series(cache, quick(cache, limit_train=16, keep_positives=True)).train) == 16
    with pytest.raises(UsageError, match="keep_positives: it goes with limit_train"):
        quick(cache, keep_positives=True)


@given(
    st.lists(st.tuples(st.sampled_from(["CTA", "MRA", "MRI T2"]), st.sampled_from([0, 1, 255])), min_size=2), st.data()
)
def test_one_share_of_the_others_of_every_modality_is_taken(series, data):
    modalities, present = [m for m, _ in series], np.array([y for _, y in series])
    labels = np.zeros((len(series), 14), int)
    labels[:, 13] = present
    cache = SimpleNamespace(uids=[f"1.{i}" for i in range(len(series))], labels=labels, modalities=modalities)
    n_positive = int((present == 1).sum())
    most = data.draw(st.integers(min(n_positive + 1, len(series)), len(series)))
    chosen = _with_all_positives(cache, np.arange(len(series)), most)
    assert len(set(chosen)) == most
    assert (present[chosen] == 1).sum() == n_positive
    others = [m for m, y in series if y != 1]
    for modality in set(modalities):
        taken = sum(modalities[i] == modality and present[i] != 1 for i in chosen)
        if others:
            assert abs(taken - (most - n_positive) * others.count(modality) / len(others)) < 1.0


def test_folds_of_a_file(train_cache, tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("series_uid,fold\n" + "".join(f"1.{i},{7 if i < 4 else 2}\n" for i in range(12)))
    split = split_series(train_cache, quick(train_cache, folds_file=str(path), fold=7))
    assert sorted(train_cache.uids[i] for i in split.val) == ["1.0", "1.1", "1.2", "1.3"]
    with pytest.raises(UsageError, match="fold 3 of 2 leaves no series to hold out"):
        split_series(train_cache, quick(train_cache, folds_file=str(path), fold=3))
    path.write_text("series_uid,fold\n")
    with pytest.raises(DataError, match="no fold for"):
        split_series(train_cache, quick(train_cache, folds_file=str(path)))


def test_the_fold_of_the_test_is_in_neither(train_cache):
    split = split_series(train_cache, quick(train_cache, fold=1, test_fold=2))
    assert (split.folds[split.val] == 1).all()
    assert (split.folds[split.train] == 0).all()
    assert len(split.train) + len(split.val) == int((split.folds < 2).sum()) < len(train_cache)


def test_a_fold_of_the_test_that_holds_nothing_would_train_on_it(train_cache, tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("series_uid,fold\n" + "".join(f"1.{i},{i % 3}\n" for i in range(12)))
    with pytest.raises(UsageError, match="no series is in fold 3, to be kept for a test; there are folds 0, 1, 2"):
        split_series(train_cache, quick(train_cache, folds_file=str(path), test_fold=3))
    with pytest.raises(UsageError, match="fold 1 can't be held out and kept for a test, too"):
        quick(train_cache, fold=1, test_fold=1)


def test_patches_that_hold_whole_volumes_need_no_places(tmp_path):
    with CacheWriter(tmp_path) as writer:
        for i in range(12):
            writer.add(f"a{i}", np.zeros((16, 15, 14), np.uint8), labels={"Aneurysm Present": i % 2})
    cache = open_cache(tmp_path)
    assert len(split_series(cache, quick(cache, patch=[16, 16, 16])).train) == 8
    with pytest.raises(UsageError, match="or patches that hold whole volumes, which are labelled as their series are"):
        split_series(cache, quick(cache, patch=[15, 16, 16]))


def test_nothing_to_learn_from_is_refused(tmp_path):
    cache = make_cache(tmp_path, 6, sites=(), places=None)
    with pytest.raises(UsageError, match="none of the 4 series to train on has a lesion whose place is known"):
        split_series(cache, quick(cache))


def test_an_empty_cache_is_refused(tmp_path):
    add_volume(tmp_path, "1.1")
    cache = finish_cache(tmp_path)
    for path in volume_paths(tmp_path):
        path.rename(tmp_path / "gone")
    from aneurysm.cache.layout import CacheLayout

    write_tables(CacheLayout(tmp_path))
    cache = open_cache(tmp_path)
    with pytest.raises(UsageError, match=r"holds no volumes\. Run aneurysm precache"):
        split_series(cache, quick(cache))


def test_held_out_series_of_one_class_and_small_volumes_are_told(tmp_path):
    cache = make_cache(tmp_path, 9, sites=(4,), places=[(18, 20, 22)])
    split = split_series(cache, quick(cache, patch=[40, 40, 40]))
    one_class, small = split.warnings
    assert "only positives: there is no AUC, and the best epoch is that of the lowest training loss" in one_class
    assert "9 of 9 volumes are smaller than a patch of 40 x 40 x 40 voxels" in small
    assert np.array_equal(np.sort(split.train + split.val), np.arange(9))
    assert split_series(cache, quick(cache, patch=[36, 40, 44])).warnings == (one_class,)


def test_prevalence_is_of_the_series_to_learn_from_whose_label_is_known(tmp_path):
    cache = make_cache(tmp_path, 9)
    cache.labels[:, 0] = 255
    split = split_series(cache, quick(cache))
    cache.labels[split.train[:2], 13] = 255
    expected = cache.labels[split.train[2:], 13].mean()
    cache.labels[split.val] = 1
    found = split.prevalence(cache)
    assert (len(found), found[0], found[12]) == (14, None, 0.0)
    assert found[13] == pytest.approx(expected)
    assert 0 < expected < 1
