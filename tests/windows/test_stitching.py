"""Maps of windows put together are the map of the whole volume, voxel for voxel, whatever the windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from aneurysm.errors import UsageError
from aneurysm.models.output import ModelOutput
from aneurysm.patches.views.view import Box
from aneurysm.windows.grid import read_windows
from aneurysm.windows.predict import WindowOptions, predict_sources
from aneurysm.windows.stitching import StitchedMap
from tests.support.mark_finder import SURE, Finds
from tests.support.painted import Painted

SHAPE = (37, 50, 61)
HERE, THERE = (5, 44, 20), (30, 8, 55)
MARKS = ((4, HERE), (9, THERE))


def stitched(cache, model, label, **options):
    options = WindowOptions(**{"view": Box((16, 16, 24)), "overlap": 0.25, "map_label": label, **options})
    (answer,) = predict_sources(model, cache, options)
    return answer


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.7])
def test_every_voxel_has_what_the_model_says_of_it(painted, overlap):
    cache = painted(Painted("1.2.3", SHAPE, MARKS))
    whole = np.full(SHAPE, 1 / (1 + np.exp(SURE)), np.float32)
    for label, places in ((4, [HERE]), (9, [THERE]), (13, [HERE, THERE])):
        expected = whole.copy()
        for place in places:
            expected[place] = 1 / (1 + np.exp(-SURE))
        answer = stitched(cache, Finds(1), label, overlap=overlap)
        assert np.allclose(answer.lesion_map, expected, atol=1e-6)
        assert answer.lesion_map.dtype == np.float32


@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_a_voxel_has_the_value_of_its_cell(painted, overlap):
    cache = painted(Painted("1.2.3", SHAPE, ((4, HERE),)))
    found = stitched(cache, Finds(4), 4, overlap=overlap).lesion_map
    assert found[HERE] == pytest.approx(1 / (1 + np.exp(-SURE)))
    # Cells lie otherwise in each window: what is high is no more than the cells that hold the mark.
    high = np.argwhere(found > 0.5)
    assert len(high) >= 8
    assert np.abs(high - HERE).max() <= 3
    assert np.unique(found.round(6)).size == 2


def test_where_cells_lie_and_which_window_counts():
    cells = torch.arange(14.0 * 8).reshape(14, 2, 2, 2) - 27
    stitch = StitchedMap((9, 9, 20), 3)
    stitch.add(cells, (4, 8, 5), (2, -3, 11), (8, 14, 10))
    stitch.add(torch.full((14, 1, 1, 1), 1.0), (16, 16, 16), (7, 0, 0), (16, 16, 16))
    expected = np.zeros((9, 9, 20))
    for z, y, x in np.ndindex(9, 9, 20):
        logits = [-np.inf]
        if z >= 2 and x >= 11:  # the window goes beyond the volume's upper and right faces
            logits.append(cells[3, (z - 2) // 4, (y + 3) // 8, (x - 11) // 5].item())
        if z >= 7 and x < 16:
            logits.append(1.0)
        expected[z, y, x] = 1 / (1 + np.exp(-max(logits)))
    assert np.allclose(stitch.values, expected, atol=1e-6)


def test_it_has_at_least_a_candidates_probability_at_its_place(painted):
    class Lopsided(nn.Module):
        """Is surer of what lies near its window's rim."""

        def forward(self, image):
            output = Finds(1)(image)
            rim = torch.linspace(-1, 1, image.shape[-1]).abs()
            return ModelOutput(output.logits, output.dense * (0.25 + rim))

    answer = stitched(painted(Painted("1.2.3", SHAPE, MARKS)), Lopsided(), 4, candidates=2, overlap=0.6)
    (candidate,) = [c for c in answer.candidates if c.site == 4]
    assert tuple(round(v) for v in candidate.zyx) == HERE
    assert answer.lesion_map[HERE] > candidate.probability


def test_what_is_not_looked_at_is_zero(painted):
    head = np.zeros((5, 7, 8), bool)
    head[0, 0, 0] = True
    cache = painted(Painted("1.2.3", SHAPE, (), head=head))
    (windows,) = [read_windows(v, (16, 16, 24), 0.25) for v in cache]
    assert len(windows.starts) < 20
    found = stitched(cache, Finds(1), 13).lesion_map
    assert found[0, 0, 0] > 0
    assert found[-1, -1, -1] == 0


def test_a_model_without_a_map_is_told_apart(painted):
    cache = painted(Painted("1.2.3", SHAPE))
    with pytest.raises(UsageError, match="--cam"):
        stitched(cache, Finds(None), 13)
    assert stitched(cache, Finds(None), None).lesion_map is None
