"""What docs/evaluate.md says to type runs as it stands there."""

import re
import shlex
import shutil

import pytest

from aneurysm.report import evaluation, page
from aneurysm.report.bootstrap import patient_weights
from tests.support.checkpoints import write_checkpoint
from tests.support.command import call_cli
from tests.support.fake_runs import of_cache, write_candidates, write_labels, write_run
from tests.support.noise_cache import add_volume, finish_cache
from tests.support.run_data import ROOT

PAGE = (ROOT / "docs" / "evaluate.md").read_text()


@pytest.fixture
def work(report_cache, tmp_path, monkeypatch):
    """A folder with the runs, cache and table of radii that the page speaks of."""
    # What is drawn is tested elsewhere, and takes seconds.
    monkeypatch.setattr(page, "draw_plots", lambda _: [])
    monkeypatch.setattr(page, "draw_gallery", lambda *_: {})
    monkeypatch.setattr(evaluation, "patient_weights", lambda patients, _, seed: patient_weights(patients, 50, seed))
    shutil.copytree(report_cache.root, tmp_path / "cache")
    series = of_cache(report_cache)
    for k in range(3):
        write_candidates(write_run(tmp_path / "runs" / f"fold{k}", series, fold=k, n_folds=3), report_cache)
    write_candidates(write_run(tmp_path / "runs" / "fold0-again", series, n_folds=3, seed=1), report_cache)
    (tmp_path / "data").mkdir()
    write_labels(tmp_path / "data" / "train.csv", series)
    shutil.copy(tmp_path / "runs" / "fold0" / "predictions_val.csv", tmp_path / "answers.csv")
    (tmp_path / "data" / "truth.csv").write_text("series_uid,location,x_mm,y_mm,z_mm,radius_mm\n")
    # Of --fresh: a best checkpoint, and a cache of other patients.
    write_checkpoint(tmp_path / "runs" / "fold0" / "checkpoints" / "best.ckpt", 0)
    for i in range(4):
        add_volume(tmp_path / "other-cache", f"9.{i}", shape=(36, 40, 44), sites=(4,) if i % 2 else (), patient=f"q{i}")
    finish_cache(tmp_path / "other-cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", re.findall(r"^    (aneurysm .*)", PAGE, re.MULTILINE))
def test_commands(command, work):
    arguments = shlex.split(command, comments=True)[1:]
    ran = call_cli(*arguments, cwd=work)
    assert ran.code == 0, ran.err
    assert "score" in ran.out


def test_python(work, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/evaluate.md", "exec"), {})
    assert "Aneurysm Present" in capsys.readouterr().out
    assert (work / "evaluation" / "report.html").exists()
