"""Ledgers with known answers, written as a run would, at times of the test's choice."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aneurysm.spec import load_spec

T0 = 1_700_000_000.0
"""When the runs of the tests begin."""


def empty_cache(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "spec.toml").write_text(load_spec("rsna-1mm").to_toml())
    return root


class LedgerFile:
    """A file of one process; each line is a call. It is a foreign host's, unless `host` is this one's."""

    def __init__(self, cache: Path, host: str = "node1", *, run: str = "r", at: float = 0.0, **who: Any) -> None:
        folder = cache / ".runs" / run
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{host}~1~{len(list(folder.iterdir())):08x}.jsonl"
        first = {"ledger": 1, "run": run, "host": host, "pid": 1, "role": "run", "version": "0.1.0"} | who
        self.line("opened", at, **first)

    def line(self, event: str, at: float, **values: Any) -> None:
        entry = {"time": T0 + at, "event": event} | values
        self.raw(json.dumps(entry).encode() + b"\n")

    def raw(self, content: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(content)

    def plan(self, at: float, series: int, **values: Any) -> None:
        self.line("run_started", at, series=series, **values)

    def begin(self, at: float, uid: str, **values: Any) -> None:
        self.line("series_started", at, series=uid, **values)

    def end(self, at: float, uid: str, status: str = "cached", **values: Any) -> None:
        self.line(status, at, series=uid, **values)

    @contextmanager
    def held(self) -> Iterator[None]:
        """As if its process were alive."""
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
