"""The page about a run: it says what the ledgers say, needs nothing else, and fits a phone."""

from __future__ import annotations

import html
import re

import pytest

from aneurysm.precaching.status import RunWatch
from aneurysm.report.rebuild_page import render_rebuild
from tests.support.browser import CHROMIUM, load, measured
from tests.support.command import call_cli
from tests.support.ledgers import T0, LedgerFile, empty_cache


@pytest.fixture
def cache(tmp_path):
    """A run of three tasks on two hosts: one where much fails, one task that was stopped."""
    cache = empty_cache(tmp_path / "cache")
    for n in range(3):
        ledger = LedgerFile(cache, f"node{n % 2}.cluster", task=f"{n}/4", job=f"70_{n}", at=60 * n)
        ledger.plan(60 * n, 200, done=20, todo=45)
        for i in range(45):
            at, uid = 60 * n + 10 * i, f"1.2.{n}.{i}"
            if n == 1 and i % 2:
                ledger.end(at, uid, "failed", reason="read_error", seconds=1)
            else:
                syntax = "1.2.840.10008.1.2.4.90" if i % 3 else "1.2.840.10008.1.2.1"
                ledger.end(at, uid, seconds=8 + i, bytes_in=10**7, bytes_out=10**6, voxels=2 * 10**6, syntax=syntax)
        ledger.line("run_ended", 60 * n + 460, how="terminated" if n == 2 else "done")
    return cache


def text_of(page: str) -> str:
    words = re.sub(r"<[^>]+>", " ", re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.DOTALL))
    return re.sub(r"\s+", " ", html.unescape(words))


def test_it_says_what_the_ledgers_say(cache):
    watch = RunWatch(cache)
    page = render_rebuild(watch.look(T0 + 1000), watch.tally)
    text = text_of(page)
    for part in (
        "155 of 200 series are done, 20 of them before it began",
        "22 of 45 series failed on node1.cluster, more than elsewhere (p < 1e-12)",
        "read_error 22",
        "1.2.0.44 52.0 9.5 MiB node0.cluster JPEG 2000 lossless",
        "2/4 terminated node0.cluster 70_2 45 0",
        "2 ended, 1 stopped, 1 not begun",
        "aneurysm 0.1.0: 3 processes",
    ):
        assert part in text
    # 30 s on average, for 2 million voxels.
    (cost,) = re.findall(r"all 113 \S+ (\S+) \S+ GiB (\S+)", text)
    seconds = [8 + i for n in range(3) for i in range(45) if not (n == 1 and i % 2)]
    assert float(cost[0]) == pytest.approx(sum(seconds) / len(seconds), abs=0.01)
    assert float(cost[1]) == pytest.approx(sum(seconds) / len(seconds) / 2, abs=0.001)
    assert page.count("<svg") == 3


def test_it_asks_for_nothing(cache):
    watch = RunWatch(cache)
    page = render_rebuild(watch.look(T0 + 1000), watch.tally)
    references = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', page)
    assert [r for r in references if not r.startswith("#")] == []
    assert "<script" not in page


def test_of_a_run_that_has_just_begun(tmp_path):
    cache = empty_cache(tmp_path / "cache")
    LedgerFile(cache, at=0)
    watch = RunWatch(cache)
    text = text_of(render_rebuild(watch.look(T0 + 1), watch.tally))
    assert "the first task looks for series" in text
    assert "Nothing was cached" in text


def test_of_ledgers_that_nobody_of_ours_wrote(cache):
    """Times from the first to the last that a number can be: neither memory nor the plot grows with them."""
    strange = LedgerFile(cache, "<b>x", at=-T0 + 1)
    strange.end(10**11, "1.9", seconds=10**14)
    strange.end(-T0 + 1, "<script>alert(1)</script>")
    watch = RunWatch(cache)
    page = render_rebuild(watch.look(T0 + 1000), watch.tally)
    assert "<b>x" not in page
    assert "alert" not in page


def test_the_command_writes_it(cache, tmp_path):
    path = tmp_path / "run.html"
    assert call_cli("status", "--cache", cache, "--report", path).code == 9
    assert path.read_text().startswith("<!DOCTYPE html>")
    ran = call_cli("status", "--cache", cache, "--report", cache)
    assert ran.code == 2
    assert "the report can't be written to" in ran.err


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")
def test_in_a_browser_it_loads_without_a_word_and_only_tables_scroll(cache, tmp_path):
    page = tmp_path / "run.html"
    call_cli("status", "--cache", cache, "--report", page)
    assert load(page, tmp_path).console == []
    assert [measured(page, tmp_path, width=width)[0] for width in (1366, 390, 320)] == [1366, 390, 320]
