"""How a run shows itself where its output goes to a file."""

from __future__ import annotations

import time
from io import StringIO

import pytest
from rich.console import Console

from aneurysm.cache.series import Outcome
from aneurysm.dicom.scan import Inventory
from cli import progress
from cli.progress import PrecacheProgress


def test_a_line_comes_every_so_often_whether_or_not_a_series_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.05)
    out = StringIO()
    with PrecacheProgress(Console(file=out, width=200)) as told:
        told.started(Inventory("data", "rsna", []), 3, 0, 3000)
        end = time.monotonic() + 20
        while out.getvalue().count("0 of 3 series") < 2 and time.monotonic() < end:
            time.sleep(0.01)
        told.finished(Outcome("1.1", "cached", bytes_in=1000))
        while "1 of 3 series" not in out.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    assert time.monotonic() < end
    time.sleep(0.1)
    said = out.getvalue()
    time.sleep(0.2)
    assert out.getvalue() == said
