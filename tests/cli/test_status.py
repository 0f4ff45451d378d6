"""aneurysm status: what a person, a pipeline and Prometheus see of a run."""

from __future__ import annotations

import json
import signal
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aneurysm.precaching.exposition import exposition
from aneurysm.precaching.status import RunWatch
from tests.support.command import call_cli, start_cli
from tests.support.ledgers import T0, LedgerFile, empty_cache


@pytest.fixture
def cache(tmp_path):
    return empty_cache(tmp_path / "cache")


def finished(cache, *outcomes: str, **ended: object) -> LedgerFile:
    ledger = LedgerFile(cache)
    ledger.plan(0, 2, todo=2)
    for number, status in enumerate(outcomes):
        ledger.end(number, f"1.{number}", status, reason="mosaic" if status == "rejected" else "")
    ledger.line("run_ended", 9, how="done", **ended)
    return ledger


@pytest.mark.parametrize(
    ("outcomes", "ended", "code"),
    [
        (("cached", "cached"), {}, 0),
        (("cached", "rejected"), {}, 8),
        (("cached", "failed"), {}, 8),
        (("cached", "cached"), {"not_cached": 1}, 8),  # a series that only a table names
        (("cached",), {"busy": 1}, 9),
    ],
)
def test_exit_codes_are_those_of_precache(cache, outcomes, ended, code):
    finished(cache, *outcomes, **ended)
    assert call_cli("status", "--cache", cache).code == code
    assert call_cli("status", "--cache", cache, "--watch").code == code


def test_what_a_person_sees_of_a_run_in_trouble(cache):
    tasks = [LedgerFile(cache, f"node{n}", task=f"{n}/4", job=f"70_{n}") for n in range(3)]
    for number, task in enumerate(tasks):
        task.plan(0, 40, done=2, todo=9)
        for n in range(6):
            task.end(n, f"1.{number}.{n}", "failed" if number == 2 else "cached", reason="read_error", seconds=2)
        task.begin(6, f"2.{number}")
    tasks[1].line("run_ended", 8, how="terminated")
    ran = call_cli("status", "--cache", cache)
    assert ran.code == 9
    for text in (
        "run r, since 2023-11-14 22:13:20 UTC: 20 of 40 series (50.0 %)",
        "read_error",
        "tasks: 2 dead, 1 stopped, 1 not begun",
        "tasks in trouble: 2 dead, 1 stopped, which had 2 series in hand",
        "terminated",
        "70_2",
        "6 of 6 series failed on node2, more than elsewhere (p = ",
    ):
        assert text in ran.out, ran.out


def test_json_has_a_version_and_all_facts(cache):
    finished(cache, "cached", "rejected")
    ran = call_cli("status", "--cache", cache, "--json")
    facts = json.loads(ran.out)
    assert (facts["version"], facts["run"], facts["complete"], facts["over"]) == (1, "r", True, True)
    assert (facts["total"], facts["done"], facts["not_cached"], facts["reasons"]) == (2, 2, 1, {"mosaic": 1})
    lines = call_cli("status", "--cache", cache, "--json", "--watch").out.splitlines()
    assert [json.loads(line)["done"] for line in lines] == [2]


def test_metrics_are_what_prometheus_reads(cache, tmp_path):
    finished(cache, "cached", "rejected")
    path = tmp_path / "aneurysm.prom"
    assert call_cli("status", "--cache", cache, "--metrics", path).code == 8
    families = list(text_string_to_metric_families(path.read_text()))
    assert len(families) > 10
    samples = {(s.name, *s.labels.items()): s.value for family in families for s in family.samples}
    assert samples["aneurysm_series_total", ("status", "cached")] == 1
    assert samples["aneurysm_series_not_cached_total", ("reason", "mosaic")] == 1
    assert samples[("aneurysm_series_expected",)] == 2
    assert samples["aneurysm_tasks", ("state", "ended")] == 1
    assert samples[("aneurysm_run_complete",)] == 1
    for family in families:
        assert family.documentation
        assert family.type in ("counter", "gauge")
        assert (family.type == "counter") == family.samples[0].name.endswith("_total")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_metrics_have_as_many_series_whatever_the_run_has(cache):
    """No label names a host or a series."""
    for n in range(30):
        ledger = LedgerFile(cache, f"node{n}", task=f"{n}/30")
        ledger.plan(0, 300, todo=10)
        ledger.end(1, f"1.{n}", "failed", reason="timed_out" if n % 2 else "read_error")
        ledger.begin(2, f"2.{n}")
    text = exposition(RunWatch(cache).look(T0 + 5))
    assert "node" not in text
    assert len(text.splitlines()) < 80


def test_what_cant_be_written_is_a_line(cache, tmp_path):
    finished(cache, "cached", "cached")
    ran = call_cli("status", "--cache", cache, "--metrics", tmp_path / "absent" / "x" / "m.prom")
    assert ran.code == 2
    assert "--metrics" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_watch_follows_the_run_and_ends_with_it(cache):
    ledger = LedgerFile(cache, at=time.time() - T0)
    ledger.plan(time.time() - T0, 1, todo=1)
    process = start_cli("status", "--cache", cache, "--watch", "--every-s", "0.2")
    assert process.stdout is not None
    assert "0 of 1 series" in process.stdout.readline()
    ledger.end(time.time() - T0, "1.1")
    ledger.line("run_ended", time.time() - T0, how="done")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "1 of 1 series (100.0 %), complete" in out.splitlines()[-1]


def test_a_watch_waits_for_a_run_that_has_not_begun(cache):
    assert call_cli("status", "--cache", cache).code == 2
    run = start_cli("status", "--cache", cache, "--watch", "--every-s", 0.1)
    assert run.stderr is not None
    assert "no run has left a ledger" in run.stderr.readline()
    finished(cache, "cached", "cached")
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert "2 of 2 series (100.0 %), complete" in out
    assert err == ""


def test_ctrl_c_ends_a_watch_and_is_no_error(cache):
    ledger = LedgerFile(cache, at=time.time() - T0)
    ledger.plan(time.time() - T0, 1, todo=1)
    process = start_cli("status", "--cache", cache, "--watch")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
