"""Cells of whole voxels: where they lie, and that a box of voxels is read out of them as out of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aneurysm.volume.cells import cell_edge, cells_affine, cells_shape, expand_cells, fold

EDGES = st.tuples(*[st.integers(1, 4)] * 3)
SHAPES = st.tuples(*[st.integers(1, 13)] * 3)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "edge"),
    [
        ((100, 100, 100), (1.0, 1.0, 1.0), (2, 2, 2)),
        ((100, 100, 100), (0.5, 0.45, 0.8), (4, 4, 2)),
        ((30, 100, 100), (5.0, 0.9, 2.0), (1, 2, 1)),
        ((1, 3, 100), (0.5, 0.5, 0.5), (1, 3, 4)),
    ],
)
def test_cells_are_about_two_millimetres_and_no_longer_than_the_volume(shape, spacing_mm, edge) -> None:
    assert cell_edge(shape, spacing_mm) == edge


def test_the_centre_of_a_cell_is_that_of_its_voxels() -> None:
    affine = np.array([[0, 0.1, 0.9, -60], [0.2, 1.1, 0, -70], [1.3, 0, 0.1, -40], [0, 0, 0, 1.0]])
    edge = (2, 3, 4)
    voxels = np.stack(np.meshgrid(*(np.arange(5 * e, 6 * e) for e in edge), indexing="ij"), -1).reshape(-1, 3)
    mean = (affine @ [*voxels.mean(axis=0), 1])[:3]
    assert np.allclose((cells_affine(affine, edge) @ [5, 5, 5, 1])[:3], mean)


@given(SHAPES, EDGES, st.data())
def test_any_box_of_the_cells_is_that_of_the_whole(shape, edge, data) -> None:
    cells = np.random.default_rng(0).integers(0, 99, cells_shape(shape, edge))
    whole = cells.repeat(edge[0], 0).repeat(edge[1], 1).repeat(edge[2], 2)[tuple(slice(n) for n in shape)]
    start = [data.draw(st.integers(0, n - 1)) for n in shape]
    stop = [data.draw(st.integers(s + 1, n)) for s, n in zip(start, shape, strict=True)]
    first = [s // e for s, e in zip(start, edge, strict=True)]
    touched = cells[tuple(slice(f, -(-b // e)) for f, b, e in zip(first, stop, edge, strict=True))]
    offset = [s - f * e for s, f, e in zip(start, first, edge, strict=True)]
    box = expand_cells(touched, edge, offset, [b - a for a, b in zip(start, stop, strict=True)])
    assert np.array_equal(box, whole[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))])


@given(SHAPES, EDGES)
def test_cells_that_are_laid_over_voxels_fold_to_themselves(shape, edge) -> None:
    cells = np.random.default_rng(1).integers(-9, 9, shape)
    voxels = expand_cells(cells, edge, (0, 0, 0), [n * e for n, e in zip(shape, edge, strict=True)])
    assert np.array_equal(fold(np.maximum, voxels, edge), cells)
    assert np.array_equal(fold(np.add, voxels, edge), cells * np.prod(edge))
