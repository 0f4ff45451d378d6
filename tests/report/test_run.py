"""What a run's folder holds, and what is said if it is not what it should be."""

from dataclasses import replace

import numpy as np
import pytest

from aneurysm.errors import DataError
from aneurysm.labels import LABELS, SITES
from aneurysm.metrics import score_series
from aneurysm.prediction_table import candidate_entry, read_rows, table_text
from aneurysm.report.run import read_run
from aneurysm.training.folds import write_folds
from aneurysm.training.validation import score_predictions, write_predictions
from aneurysm.windows.predict import SeriesPrediction
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_runs import fake_series, folds_of, say, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", fake_series(40, unknown=0.1), fold=1, n_folds=2)


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_run_comes_back_as_it_was_written(run):
    series = fake_series(40, unknown=0.1)
    held = np.flatnonzero(folds_of(series, 2) == 1)
    found = read_run(run)
    p = found.predictions
    assert p.uids.tolist() == sorted(series.uids[i] for i in held)
    index = [series.uids.index(uid) for uid in p.uids]
    np.testing.assert_array_equal(p.truth, series.labels[index])
    assert p.patients.tolist() == [series.patients[i] for i in index]
    assert p.modalities.tolist() == [series.modalities[i] for i in index]
    assert set(p.folds.tolist()) == {1}
    assert len(found.assigned) == 40
    assert found.name == "run"
    assert found.config["model"] == "resnet3d18-dense"
    assert str(found.cache) == "cache"
    assert found.candidates is None
    assert len(found.epochs) == 8


def test_columns_may_stand_in_any_order(tmp_path):
    series = fake_series(40)
    straight = read_run(write_run(tmp_path / "a", series, n_folds=1)).predictions
    path = tmp_path / "a" / "predictions_val.csv"
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    order = sorted(range(len(header)), key=lambda i: header[i])
    path.write_text("\n".join(",".join(row[i] for i in order) for row in [header, *rows]) + "\n")
    turned = read_run(tmp_path / "a").predictions
    np.testing.assert_array_equal(turned.probabilities, straight.probabilities)
    np.testing.assert_array_equal(turned.truth, straight.truth)


def test_series_without_a_patients_key_are_patients_of_their_own(run):
    uid = read_run(run).predictions.uids[0]
    path = run / "folds.csv"
    path.write_text("\n".join(f"{uid},,1" if line.startswith(f"{uid},") else line for line in path.read_text().split()))
    assert read_run(run).predictions.patients[0] == f"series {uid}"


def test_only_predictions_and_folds_are_needed(run):
    (run / "config.toml").unlink()
    (run / "metrics.csv").unlink()
    found = read_run(run)
    assert (found.config, found.config_text, found.cache, len(found.epochs)) == ({}, "", None, 0)


def rewritten(name, old, new):
    def damage(run):
        change(run / name, old, new)

    return damage


def repeated(run):
    path = run / "predictions_val.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")


def emptied(run):
    path = run / "predictions_val.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")


def diverged(run):
    path = run / "predictions_val.csv"
    lines = path.read_text().splitlines()
    fields = lines[1].split(",")
    fields[4] = "nan"
    path.write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]) + "\n")


def with_candidate(site, probability=0.25, lps_mm=(-30.5, 20.0, 10.0)):
    def write(run):
        first, *others = read_rows(run / "predictions_val.csv")
        entry = candidate_entry(site, probability, lps_mm, (1, 2, 3))
        rows = [replace(first, candidates=[entry]), *(replace(row, candidates=[]) for row in others)]
        (run / "predictions_val.csv").write_text(table_text(rows, ".csv"))

    return write


def of_version_2(run):
    path = run / "predictions_val.csv"
    lines = path.read_text().splitlines()
    column = lines[0].split(",").index("format_version")
    fields = lines[1].split(",")
    fields[column] = "2"
    path.write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]) + "\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "predictions_val.csv").unlink(), "has no predictions_val.csv"),
        (lambda run: (run / "folds.csv").unlink(), "folds.csv is missing or damaged"),
        (rewritten("predictions_val.csv", "Basilar Tip", "Circle of Willis"), r"lacks the column\(s\) Basilar Tip"),
        (rewritten("predictions_val.csv", "modality", "kind"), r"lacks the column\(s\) modality"),
        (of_version_2, "of version '2', this program reads version 1: predict again"),
        (rewritten("folds.csv", "series_uid", "uid"), "has no column series_uid"),
        (lambda run: (run / "folds.csv").write_text("series_uid,patient_key,fold\n"), "lacks .* of the series"),
        (repeated, "has two rows of series"),
        (emptied, "has no series"),
        (diverged, "no probability. Has the run diverged"),
        (rewritten("config.toml", "model =", "model"), "config.toml is damaged"),
        (lambda run: say(run, part="train"), "part is 'train', expected one of val, test, external"),
        (with_candidate("Elbow"), "a candidate at 'Elbow', which is no site"),
        (rewritten("predictions_val.csv", ",0\n", ",2\n"), "a label is '2', expected 0, 1 or nothing"),
    ],
    ids=[
        "no predictions", "no folds", "another label", "no modality", "another version", "no uid in folds",
        "series not in folds", "a series twice", "no series", "diverged", "no toml", "another part",
        "an unknown site", "no label",
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(run, damage, message):
    damage(run)
    with pytest.raises(DataError, match=message):
        read_run(run)


def test_no_such_run(tmp_path):
    with pytest.raises(DataError, match=r"there is no .*none"):
        read_run(tmp_path / "none")


def test_candidates_come_back(run):
    uid = read_rows(run / "predictions_val.csv")[0].series_uid
    with_candidate(SITES[4])(run)
    found = read_run(run).candidates
    assert found.uids.tolist() == [uid]
    assert found.probabilities.tolist() == [0.25]
    assert found.sites.tolist() == [LABELS.index("Left Middle Cerebral Artery")]
    np.testing.assert_allclose(found.lps_mm, [[-30.5, 20, 10]])


def test_predictions_of_another_epoch_than_the_best_checkpoint_are_refused(run):
    """As a run leaves them that was killed between writing the two."""
    say(run, epoch=3)
    best = run / "checkpoints" / "best.ckpt"
    write_checkpoint(best, 0)
    with pytest.raises(DataError, match=r"are of epoch 3, its best\.ckpt is of epoch 1: .* --resume\), or .*--fresh"):
        read_run(run)
    best.unlink()
    assert read_run(run).part == "val"


def test_the_file_keeps_every_bit_of_a_prediction(tmp_path, report_cache):
    """So that the report's score is that of training, and its temperatures are of what `predict` applies them to."""
    shape = (len(report_cache), len(LABELS))
    values = 1 - 10.0 ** -np.random.default_rng(0).permutation(np.linspace(8, 15, shape[0] * shape[1])).reshape(shape)
    values[0, :4] = 1e-300, 0.1, 1 / 3, np.nextafter(1, 0)
    found = {
        i: SeriesPrediction(i, uid, values[i], np.zeros(len(LABELS), np.float32), [])
        for i, uid in enumerate(report_cache.uids)
    }
    folds = dict.fromkeys(found, 0)
    write_predictions(tmp_path / "predictions_val.csv", report_cache, found, folds, epoch=1)
    write_folds(tmp_path / "folds.csv", report_cache.uids, report_cache.patient_keys, list(folds.values()))
    p = read_run(tmp_path).predictions
    assert score_series(p.truth, p.probabilities).score == pytest.approx(score_predictions(report_cache, found).score)
    np.testing.assert_array_equal(p.probabilities, [values[report_cache.uids.index(uid)] for uid in p.uids])
