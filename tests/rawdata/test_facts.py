"""Facts of many series by index."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aneurysm.rawdata.facts import FactsTable, SeriesFacts

facts = st.builds(
    SeriesFacts,
    st.integers(0, 10**6),
    st.integers(0, 2**60),
    st.integers(0, 2**24),
    st.integers(0, 2**44),
    st.sampled_from(["", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90"]),
)


@given(st.lists(facts, max_size=9))
def test_they_come_back_as_they_were_and_others_are_unknown(known):
    table = FactsTable(2 * len(known))
    table.fill(range(1, 2 * len(known), 2), known)
    assert [table[i] for i in range(1, 2 * len(known), 2)] == known
    assert [table[i] for i in range(0, 2 * len(known), 2)] == [SeriesFacts()] * len(known)
    assert table.bytes[1::2].tolist() == [of.bytes for of in known]


def test_as_many_are_filled_in_as_are_named():
    with pytest.raises(ValueError, match="shorter"):
        FactsTable(3).fill([0, 1], [SeriesFacts()])
