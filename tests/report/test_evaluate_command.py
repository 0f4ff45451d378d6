"""`aneurysm evaluate`: what it prints, writes and returns."""

import json
import shutil

from tests.support.command import call_cli, run_cli
from tests.support.fake_runs import fake_series, write_run


def test_from_a_run_to_a_page(cached_run, report, tmp_path):
    run = tmp_path / cached_run.name
    shutil.copytree(cached_run, run)
    ran = run_cli("evaluate", run, "--samples", 100, "--cases", 1)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    assert f"score        {report[0].ranking.score}" in ran.out
    assert "Not for clinical use" in ran.out
    assert "lesions found at 1 false positive a scan" in ran.out
    # From Python or the command line, in this process or another: the same bytes.
    written = sorted(p.relative_to(report[1]) for p in report[1].rglob("*") if p.is_file())
    out = run / "evaluation"
    assert sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file()) == written
    for path in written:
        assert (out / path).read_bytes() == (report[1] / path).read_bytes(), path


def test_the_options_get_there(cached_run, report_cache, tmp_path):
    out, cache = tmp_path / "out", report_cache.root
    given = ("--samples", 50, "--cases", 0, "--match-radius", 1, "--precision", 0.5, "--seed", 3, "--ensemble", "ranks")
    ran = call_cli("evaluate", cached_run, "--out", out, "--cache", cache, *given)
    assert ran.code == 0, ran.err
    options = json.loads((out / "metrics.json").read_text())["options"]
    assert options == {
        "ensemble": "ranks", "target_precision": 0.5, "match_radius_mm": 1.0, "samples": 50, "seed": 3
    }  # fmt: skip
    assert not (cached_run / "evaluation").exists()


def test_several_runs_leave_the_report_of_one_alone(tmp_path):
    for fold in range(2):
        write_run(tmp_path / f"run{fold}", fake_series(30), fold=fold, n_folds=2)
    ran = call_cli("evaluate", "run0", "run1", cwd=tmp_path)
    assert ran.code == 2
    assert "name the report's folder with --out" in ran.err
    assert not (tmp_path / "run0" / "evaluation").exists()


def test_what_is_wrong_is_one_line(tmp_path):
    write_run(tmp_path / "run", fake_series(30), n_folds=1)
    options = [("--precision", 2), ("--samples", 5), ("--samples", 10_001), ("--out", "/proc/x")]
    for arguments in (("none",), ("run", "run", "--out", "out"), *(("run", *given) for given in options)):
        ran = call_cli("evaluate", *arguments, cwd=tmp_path)
        assert ran.code == 2
        assert ran.err.startswith("aneurysm: ")
        assert len(ran.err.splitlines()) == 1
    assert call_cli("evaluate", "run", "--cache", "none", cwd=tmp_path).code == 3
