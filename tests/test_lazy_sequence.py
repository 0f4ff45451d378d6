"""Values that are made when they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from aneurysm.lazy_sequence import LazySequence


@pytest.mark.parametrize("indices", [[4, 0, 2], range(4, 0, -2), np.array([4, 0, 2], np.int64)])
def test_it_is_a_sequence_of_what_is_made_of_each_index(indices):
    squares = LazySequence(lambda i: i * i, indices)
    expected = [int(i) ** 2 for i in indices]
    assert list(squares) == expected
    assert len(squares) == len(expected)
    assert squares[1:] == expected[1:]
    assert squares[-1] == expected[-1]
    with pytest.raises(IndexError):
        squares[len(expected)]


def test_nothing_is_made_before_it_is_asked_for():
    made: list[int] = []
    values = LazySequence(lambda i: made.append(i) or i, range(1000))
    assert made == []
    assert values[17] == 17
    assert made == [17]


def test_indices_that_were_numpy_s_are_python_s():
    assert LazySequence(lambda i: type(i), np.arange(2))[0] is int
