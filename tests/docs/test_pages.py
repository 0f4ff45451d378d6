"""The pages for data engineers, researchers and integrators: their commands and their Python run as they stand."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from aneurysm import load_predictor
from aneurysm.labels import LABELS
from aneurysm.report import evaluation
from aneurysm.report import page as report_page
from aneurysm.report.bootstrap import patient_weights
from tests.support.cache_paths import volume_name
from tests.support.command import call_cli
from tests.support.run_data import ROOT

PRESENT = LABELS[-1]
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def commands(name: str) -> list[list[str]]:
    found = re.findall(r"^    aneurysm (.*)", page(name), re.MULTILINE)
    assert found
    return [shlex.split(command, comments=True) for command in found]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with the data of which the pages speak."""
    # What is drawn is tested elsewhere, and takes seconds.
    monkeypatch.setattr(report_page, "draw_plots", lambda _: [])
    monkeypatch.setattr(evaluation, "patient_weights", lambda patients, _, seed: patient_weights(patients, 50, seed))
    made = call_cli("phantom", "data", "--series", "12", "--size", "tiny", "--workers", "1", cwd=tmp_path)
    assert made.code == 0, made.err
    return tmp_path


@pytest.mark.slow
def test_they_run_in_this_order(work, monkeypatch):
    for name in ("for-data-engineers", "for-researchers"):
        for command in commands(name):
            ran = call_cli(*command, cwd=work)
            # 8: of the phantom's series some can't be cached, as it is in real data.
            allowed = {0, 8} if command[0] in ("precache", "manifest", "predict") else {0}
            assert ran.code in allowed, f"{name}: aneurysm {shlex.join(command)}: {ran.err}"
    assert (work / "evaluation" / "report.html").is_file()
    answers = {row["series_uid"]: row for row in table(work / "answers.csv")}
    cached = {row["series_uid"] for row in table(work / "cache" / "manifest.csv") if row["status"] == "cached"}
    predicted = {uid: float(row[PRESENT]) for uid, row in answers.items() if row[PRESENT]}
    assert len(answers) == 12
    # What becomes a volume has an answer, and nothing else.
    assert set(predicted) == cached
    assert len(cached) >= 6
    assert len(set(predicted.values())) == len(predicted)

    blocks = re.findall(r"^```python\n(.*?)^```", page("for-integrators"), re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.chdir(work)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "for-integrators", "exec"), names)
    # From the cache as from DICOM; the page's own prediction is of one of the two models.
    both = load_predictor([f"runs/fold{fold}/checkpoints/best.ckpt" for fold in range(2)])
    first = names["cache"].uids[0]  # type: ignore[attr-defined]
    assert both(f"cache/{volume_name(first)}").probabilities[PRESENT] == pytest.approx(predicted[first], rel=1e-3)
    assert names["prediction"].probabilities[PRESENT] != pytest.approx(predicted[first], rel=1e-3)  # type: ignore[attr-defined]
    assert names["first_voxel_lps_mm"].shape == (4,)  # type: ignore[attr-defined]


def test_links_lead_somewhere():
    pages = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
    targets = [(page, t) for page in pages for t in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())]
    files = [(page, target) for page, target in targets if not target.startswith("http")]
    assert len(files) > len(pages)
    assert [f"{page.name}: {target}" for page, target in files if not (page.parent / target).exists()] == []
