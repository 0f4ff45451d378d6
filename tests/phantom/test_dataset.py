"""A data set on disk: the same bytes for the same seed, resumed runs, refusals, tables."""

from __future__ import annotations

import ast
import csv
import hashlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from aneurysm.cli.main import main
from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.labels import LABELS
from aneurysm.phantom import dataset
from aneurysm.phantom.dataset import write_dataset, write_plans
from aneurysm.phantom.plan import plan_series
from aneurysm.phantom.truth import read_truth, write_truth

SMALL = {"series": 4, "seed": 2, "size": "tiny"}


def _digests(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "data"
    seen: list[tuple[int, int]] = []
    summary = write_dataset(out, **SMALL, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 4) for i in range(5)]
    assert (summary.series, summary.resumed) == (4, 0)
    assert summary.bytes == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    return out


def test_two_workers_write_the_same_bytes(made: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "again", **SMALL, workers=2)
    assert _digests(tmp_path / "again") == _digests(made)
    assert not (made / ".building").exists()


def test_a_run_that_was_killed_is_resumed_to_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = dataset.write_series, []

    def dies(plan, root):
        calls.append(plan.uid)
        if len(calls) == 3:
            (root / "series" / plan.uid).mkdir(parents=True)  # Half a series is there.
            raise KeyboardInterrupt
        return real(plan, root)

    monkeypatch.setattr(dataset, "write_series", dies)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "out", **SMALL)
    assert not (tmp_path / "out" / "train.csv").exists()
    with pytest.raises(UsageError, match="unfinished phantom data set of other settings"):
        write_dataset(tmp_path / "out", **{**SMALL, "seed": 3})
    summary = write_dataset(tmp_path / "out", **SMALL)
    assert summary.resumed == 2
    assert len(calls) == 5
    assert _digests(tmp_path / "out") == _digests(made)


def test_another_seed_gives_other_bytes(made: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, **{**SMALL, "series": 1, "seed": 3})
    assert not set(_digests(tmp_path).values()) & set(_digests(made).values())


def test_the_tables_have_the_columns_of_the_real_ones(made: Path) -> None:
    with (made / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["SeriesInstanceUID", "PatientAge", "PatientSex", "Modality", *LABELS]
    assert {r["SeriesInstanceUID"] for r in rows} == {p.name for p in (made / "series").iterdir()}
    truths = {t.uid: t for t in read_truth(made)}
    for row in rows:
        truth = truths[row["SeriesInstanceUID"]]
        assert {x for x in LABELS[:13] if row[x] == "1"} == {lesion.site for lesion in truth.lesions}
        assert row["Aneurysm Present"] == str(int(bool(truth.lesions)))
        assert row["Modality"] == truth.modality
    with (made / "train_localizers.csv").open() as file:
        localizers = list(csv.DictReader(file))
    assert list(localizers[0]) == ["SeriesInstanceUID", "SOPInstanceUID", "coordinates", "location"]
    for row in localizers:
        point = ast.literal_eval(row["coordinates"])
        assert set(point) in ({"x", "y"}, {"x", "y", "f"})
        assert "'" in row["coordinates"]


def test_the_truth_survives_writing_and_reading(made: Path, tmp_path: Path) -> None:
    truths = read_truth(made / "truth.csv")
    write_truth(tmp_path / "truth.csv", truths)
    assert (tmp_path / "truth.csv").read_bytes() == (made / "truth.csv").read_bytes()
    assert read_truth(tmp_path) == truths


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, made: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty \(notes\.txt\).*--overwrite"):
        write_dataset(tmp_path, **SMALL)
    with pytest.raises(UsageError, match="is not empty"):
        write_dataset(made, **SMALL)
    with pytest.raises(UsageError, match="is a file, not a folder"):
        write_dataset(tmp_path / "notes.txt", **SMALL)


def test_overwrite_replaces_a_phantom_and_nothing_else(tmp_path: Path) -> None:
    plan = plan_series(0, 0, modality="MRI T2", quirks=("no_files",))
    write_plans(tmp_path, [plan])
    (tmp_path / "notes.txt").write_text("mine")
    other = plan_series(1, 0, modality="MRI T2", quirks=("no_files",))
    write_plans(tmp_path, [other], overwrite=True)
    assert [p.name for p in (tmp_path / "series").iterdir()] == [other.uid]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    real = tmp_path / "real"
    (real / "series" / "1.2.3").mkdir(parents=True)
    with pytest.raises(UsageError, match="no phantom data set"):
        write_plans(real, [other], overwrite=True)
    assert (real / "series" / "1.2.3").is_dir()


def test_too_little_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    with pytest.raises(NoSpaceError, match=r"needs about [\d.]+ GiB.* 95\.4 MiB are free"):
        write_dataset(tmp_path / "out", series=24, size="full")
    assert not (tmp_path / "out").exists()


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["aneurysm", "phantom", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--series", 0), "--series 0: give a whole number, 1 or more"),
        (("--size", "huge"), "--size huge: choose from tiny, small, full"),
        (("--difficulty", 9), "--difficulty 9: give a number, 0.25 to 4"),
        (("--workers", 0), "--workers 0: give a whole number, 1 to 1024"),
        (("--seed", -1), "--seed -1: give a whole number, 0 or more"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: tuple, text: str
) -> None:
    assert _run(monkeypatch, tmp_path / "out", *arguments) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_writes_an_empty_folder_and_refuses_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = (tmp_path, "--series", 1, "--size", "tiny", "--no-quirks", "--workers", 1)
    assert _run(monkeypatch, *command) == 0
    assert capsys.readouterr().out.startswith("1 series, ")
    assert _run(monkeypatch, *command) == 2
    assert "is not empty" in capsys.readouterr().err
    assert _run(monkeypatch, *command, "--overwrite") == 0
