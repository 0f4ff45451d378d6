"""No patient on both sides, whatever the manifest; and what is wrong with a given file."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aneurysm.errors import DataError, UsageError
from aneurysm.labels import MODALITIES
from aneurysm.training.folds import assign_folds, read_folds, write_folds
from aneurysm.training.metrics_table import MetricsTable
from aneurysm.training.validation import write_predictions


@st.composite
def manifests(draw):
    """Series of patients, some unknown, in no order."""
    n = draw(st.integers(10, 60))
    uids = [f"1.2.{i}" for i in draw(st.permutations(range(n)))]
    keys = draw(st.lists(st.sampled_from(["", *(f"p{i}" for i in range(20))]), min_size=n, max_size=n))
    keys[:10] = [f"q{i}" for i in range(10)]  # at least ten patients
    present = draw(st.lists(st.sampled_from([0, 1, 255]), min_size=n, max_size=n))
    modalities = draw(st.lists(st.sampled_from(MODALITIES), min_size=n, max_size=n))
    return uids, keys, present, modalities


def many(n: int = 3000) -> tuple[list[str], list[str], np.ndarray, list[str]]:
    """A manifest as RSNA's: each series of its own patient."""
    random = np.random.default_rng(0)
    names = [str(m) for m in random.choice(MODALITIES, n, p=[0.42, 0.29, 0.22, 0.07])]
    return [f"1.2.{i}" for i in range(n)], [f"p{i}" for i in range(n)], random.integers(0, 2, n), names


@settings(deadline=None)
@given(manifests(), st.integers(2, 10), st.integers(0, 5))
def test_no_patient_stands_on_both_sides(manifest, n_folds, seed):
    uids, keys, present, modalities = manifest
    folds = assign_folds(uids, keys, present, modalities, n_folds=n_folds, seed=seed)
    of_patient = defaultdict(set)
    for key, fold in zip(keys, folds, strict=True):
        if key:
            of_patient[key].add(int(fold))
    assert all(len(found) == 1 for found in of_patient.values())
    assert set(folds) == set(range(n_folds))


@settings(deadline=None)
@given(manifests(), st.randoms(use_true_random=False))
def test_the_order_of_the_manifest_has_no_say(manifest, random):
    rows = list(zip(*manifest, strict=True))
    before = dict(zip(manifest[0], assign_folds(*manifest), strict=True))
    random.shuffle(rows)
    shuffled = [list(column) for column in zip(*rows, strict=True)]
    assert dict(zip(shuffled[0], assign_folds(*shuffled), strict=True)) == before


def test_folds_are_alike_in_presence_and_modality():
    uids, keys, present, modalities = many()
    folds = assign_folds(uids, keys, present, modalities)
    counts = Counter(zip(present.tolist(), modalities, folds.tolist(), strict=True))
    for stratum in {key[:2] for key in counts}:
        sizes = [counts[*stratum, fold] for fold in range(5)]
        assert max(sizes) - min(sizes) <= 1
    assert set(np.bincount(folds)) == {600}


def test_a_seed_gives_the_same_folds_and_another_seed_others():
    manifest = many(200)
    assert (assign_folds(*manifest, seed=3) == assign_folds(*manifest, seed=3)).all()
    assert (assign_folds(*manifest, seed=3) != assign_folds(*manifest, seed=4)).any()


def test_the_folds_of_a_seed_are_these_on_every_machine():
    folds = assign_folds(*many(12), n_folds=3)
    assert folds.tolist() == [2, 1, 2, 0, 2, 1, 2, 0, 1, 0, 1, 0]


def test_an_aneurysm_in_any_series_makes_the_patient_positive():
    """Twenty patients with two series each, the second of ten of them positive: each of two folds gets five."""
    uids = [f"1.{i}" for i in range(40)]
    keys = [f"p{i // 2}" for i in range(40)]
    present = [255 if i % 2 == 0 else int(i < 20) for i in range(40)]
    folds = assign_folds(uids, keys, present, ["CTA"] * 40, n_folds=2)
    assert Counter(folds[:20].tolist()) == Counter(folds[20:].tolist()) == {0: 10, 1: 10}


@pytest.mark.parametrize("n_folds", [1, 0, 5])
def test_more_folds_than_patients_are_refused(n_folds):
    with pytest.raises(UsageError, match=f"{n_folds} folds of 4 patients"):
        assign_folds(["1", "2", "3", "4", "5"], ["a", "a", "b", "", ""], [0] * 5, ["CTA"] * 5, n_folds=n_folds)


UIDS, KEYS = ["1.1", "1.2", "1.3"], ["a", "", "a"]


def write(tmp_path, text: str):
    path = tmp_path / "folds.csv"
    path.write_text(text)
    return path


def test_folds_come_back_from_their_file(tmp_path):
    write_folds(tmp_path / "folds.csv", ["1.3", "1.2", "1.1"], KEYS, np.array([1, 0, 1]))
    assert (tmp_path / "folds.csv").read_bytes() == b"series_uid,patient_key,fold\n1.1,a,1\n1.2,,0\n1.3,a,1\n"
    assert read_folds(tmp_path / "folds.csv", UIDS, KEYS).tolist() == [1, 0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["folds.csv"]


def test_a_spreadsheets_file_with_more_series_and_columns_serves(tmp_path):
    path = write(tmp_path, "\ufefffold,series_uid,note\n3,1.9,\n2,1.1,x\n0,1.2,\n2,1.3,\n")
    assert read_folds(path, UIDS, KEYS).tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    "text, words",
    [
        pytest.param("series_uid,fold\n1.1,0\n1.2,1\n1.3,1\n", "more than one fold: a. They", id="patient torn"),
        pytest.param(
            "series_uid,patient_key,fold\n1.1,a,0\n1.2,b,1\n1.3,a,0\n1.4,b,0\n", None, id="the other half is not here"
        ),
        pytest.param(
            "series_uid,patient_key,fold\n1.1,k,0\n1.2,k,1\n1.3,k,0\n", "fold: k", id="patient torn by the file's keys"
        ),
        pytest.param("series_uid,fold\n1.1,0\n", "no fold for 1.2, 1.3 of 3 series", id="series missing"),
        pytest.param("series_uid,fold\n1.1,0\n1.1,0\n", "line 3: 1.1 is there twice", id="series twice"),
        pytest.param("series_uid,fold\n1.1,-1\n", "line 2: the fold of 1.1 is '-1'", id="negative"),
        pytest.param("series_uid,fold\n1.1,0.0\n", "is '0.0', not a whole number", id="fraction"),
        pytest.param("series_uid,fold\n1.1\n", "line 2 has 1 of 2 cells", id="short line"),
        pytest.param("uid,fold\n1.1,0\n", r"lacks the column\(s\) series_uid", id="other column"),
        pytest.param("", "is empty; expected the columns series_uid, fold", id="empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, text, words):
    path = write(tmp_path, text)
    if words is None:
        assert read_folds(path, UIDS, KEYS).tolist() == [0, 1, 0]
        return
    with pytest.raises(DataError, match=words):
        read_folds(path, UIDS, KEYS)


def test_no_file_is_an_error_of_the_users(tmp_path):
    with pytest.raises(DataError, match="can't read folds"):
        read_folds(tmp_path / "none.csv", UIDS, KEYS)


def test_many_missing_series_are_counted(tmp_path):
    path = write(tmp_path, "series_uid,fold\n")
    with pytest.raises(DataError, match="0, 1, 2 and 7 more of 10 series"):
        read_folds(path, [str(i) for i in range(10)], [""] * 10)


def test_tables_are_on_the_disk_or_as_they_were(tmp_path, monkeypatch):
    path = tmp_path / "folds.csv"
    write_folds(path, ["1.2"], ["p"], [0])
    before = path.read_text()
    assert before == "series_uid,patient_key,fold\n1.2,p,0\n"

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    tables = MetricsTable(tmp_path / "metrics.csv", ["bce"], ["CTA"], 0)
    for write in (
        lambda: write_folds(path, ["1.2"], ["p"], [1]),
        lambda: tables.add({"epoch": 1, "step": 4}),
        lambda: write_predictions(tmp_path / "predictions_val.csv", None, {}, {}, epoch=1),
    ):
        with pytest.raises(OSError, match="No space"):
            write()
    assert [p.name for p in tmp_path.iterdir()] == ["folds.csv"]
    assert path.read_text() == before
