"""The example of a view and a model of one's own runs, and reads what it says it does."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import torch

from aneurysm.cache.cache import open_cache
from aneurysm.patches.loader import PatchLoader
from tests.support.built import Built

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_view.py"


def test_the_example_trains_on_three_planes_through_the_middle_of_the_head(built: Built, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["own_view.py", str(built.cache)])
    names = runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(np.isfinite(float(line.rpartition(" ")[2])) for line in lines)
    cache, view = open_cache(built.cache), names["MiddlePlanes"]()
    (batch,) = PatchLoader(cache, view=view, batch_size=1, steps=1)
    volume = cache[int(batch.volume[0])]
    pictures = view.choose(volume)[0]
    whole = np.asarray(volume)
    z, (row, column) = pictures[0].first, pictures[0].corner
    shown = np.full((160, 160), volume.fill)
    rows, columns = (slice(max(-c, 0), min(n - c, 160)) for c, n in zip((row, column), whole.shape[1:], strict=True))
    shown[rows, columns] = whole[z, max(row, 0) : row + 160, max(column, 0) : column + 160]
    expected = next(iter(PatchLoader(cache, view=_Still(view), batch_size=1, steps=1))).image[0, 0, 0]
    assert torch.equal(expected, torch.from_numpy(shown.astype(np.int16)))


class _Still:
    """The view without what is at random."""

    def __init__(self, view) -> None:
        self._view = view
        self.scope, self.channels, self.shape, self.planes = view.scope, view.channels, view.shape, view.planes

    def choose(self, volume, _rng=None):
        return self._view.choose(volume)
