"""--json: one object on standard output, with the keys that the page lists, whatever the command says besides."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from aneurysm.precaching.run import RunSummary
from aneurysm.precaching.status import RunStatus
from aneurysm.precaching.verify import Report
from tests.support.command import Ran, call_cli, call_in_process, environment
from tests.support.run_data import ROOT

PAGE = (ROOT / "docs" / "for-data-engineers.md").read_text()


def result(ran: Ran, command: str) -> dict[str, object]:
    facts = json.loads(ran.out)
    assert (facts["version"], facts["command"], facts["exit_code"]) == (1, command, ran.code)
    assert facts.keys() == documented("each") | documented(command), command
    return facts


def documented(command: str) -> set[str]:
    """The keys of a command on the page; those of lists within are in parentheses."""
    (row,) = re.findall(rf"^\| `?{command}`? \| (.*) \|$", PAGE, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row)))


@pytest.fixture
def cache(built, tmp_path):
    shutil.copytree(built.cache, tmp_path / "cache")
    return tmp_path / "cache"


def test_precache(built, tmp_path):
    cache = tmp_path / "cache"
    command = ("precache", "--data", built.data, "--cache", cache, "--workers", 1, "--json")
    ran = call_in_process(*command, "--shard", "0/2", env=environment(ANEURYSM_RUN="mine"))
    facts = result(ran, "precache")
    assert (facts["run"], facts["shard"], facts["cached"], facts["total_cached"]) == ("mine", "0/2", 2, 2)
    assert "2 cached, 0 rejected" in ran.err
    for path in (cache / "volumes").rglob("zarr.json"):
        path.unlink()
    ran = call_in_process(*command)
    assert result(ran, "precache")["shard"] is None


def test_precache_of_what_fails_has_the_code_that_exit_zero_hides(monkeypatch):
    summary = RunSummary(failed=1)
    summary.reasons["timed_out"] += 1
    monkeypatch.setattr("aneurysm.precaching.run.precache", lambda *_, **__: summary)
    ran = call_cli("precache", "--json", "--exit-zero")
    facts = json.loads(ran.out)
    assert (ran.code, facts["exit_code"], facts["reasons"]) == (0, 8, {"timed_out": 1})


def test_manifest(built, cache):
    shutil.rmtree(next((cache / "volumes").rglob("*.zarr")))
    facts = result(call_cli("manifest", "--json", "--cache", cache, "--data", built.data), "manifest")
    assert (facts["cached"], facts["not_cached"]) == (3, 0)
    assert len(facts["missing"]) == 1
    assert result(call_cli("manifest", "--json", "--cache", cache), "manifest")["missing"] is None


def test_verify(cache):
    facts = result(call_cli("verify", "--json", "--cache", cache, "--workers", 1), "verify")
    assert (facts["volumes"], facts["faults"]) == (4, [])
    (cache / "lesions.csv").write_text("")
    facts = result(call_cli("verify", "--json", "--cache", cache, "--workers", 1), "verify")
    assert facts["exit_code"] == 3
    assert {tuple(fault) for fault in facts["faults"]} == {("where", "what", "advice", "derived")}
    assert all(fault["derived"] for fault in facts["faults"])


def test_status(cache):
    facts = json.loads(call_cli("status", "--json", "--cache", cache).out)
    assert facts.keys() == documented("status")


def test_an_error_writes_no_object(tmp_path):
    for command in ("precache", "manifest", "verify", "status"):
        ran = call_cli(command, "--json", "--cache", tmp_path / "absent" / "cache", cwd=tmp_path)
        assert ran.code in (2, 3), ran.text
        assert ran.out == ""


def test_the_page_lists_what_the_programs_hold():
    assert vars(RunSummary()).keys() <= documented("precache")
    assert vars(Report()).keys() <= documented("verify")
    assert set(RunStatus.__dataclass_fields__) <= documented("status")
