"""recorded_costs(): the ledgers of the runs that built a cache -> what its series cost on the machines at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

from aneurysm.errors import AneurysmError
from aneurysm.precaching.expected_seconds import CostModel, fitted_costs
from aneurysm.precaching.ledger_files import open_ledgers, runs_of
from aneurysm.rawdata.facts import SeriesFacts

_RUNS: Final = 5
_ENTRIES: Final = 200_000
"""At most this many lines of the newest runs are read: seconds, and a median needs no more."""


def recorded_costs(cache: str) -> CostModel:
    """Return the costs by the newest runs of ``cache``, a folder or a URL; the constants where there is none."""
    return fitted_costs(islice(_points(cache), _ENTRIES))


def _points(cache: str) -> Iterator[tuple[SeriesFacts, float]]:
    with suppress(AneurysmError, OSError):  # how long it took is only of help
        for run in runs_of(cache)[:_RUNS]:
            for entry in islice(open_ledgers(cache, run).read(), _ENTRIES):
                if entry.event == "cached":
                    facts = SeriesFacts(
                        bytes=entry.count("bytes_in"),
                        frames=entry.count("frames"),
                        voxels=entry.count("voxels"),
                        syntax=entry.name("syntax"),
                    )
                    yield facts, entry.number("seconds")
