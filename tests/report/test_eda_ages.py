"""Patients by age and sex: known counts, and no group in which somebody can be picked out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aneurysm.report.eda_ages import AgeGroup, age_table

PATIENTS = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 120)), st.sampled_from(["female", "male", ""])), max_size=80
)


def test_decades_with_known_counts():
    ages = [*range(41, 47), *range(50, 58), *range(60, 65)]  # 6, 8 and 5
    table = age_table([(age, "female") for age in ages])
    assert table.groups["female"] == [AgeGroup(None, 50, 6), AgeGroup(50, 60, 8), AgeGroup(60, None, 5)]
    assert [str(g) for g in table.groups["female"]] == ["under 50", "50 to 59", "60 and over"]
    assert (table.groups["male"], table.others) == ([], 0)


def test_few_are_put_together_with_those_that_follow_and_the_last_with_those_before():
    few = [(25, "male"), *[(38, "male")] * 3, *[(44, "male")] * 2, *[(66, "male")] * 5, *[(93, "male")] * 4]
    assert age_table(few).groups["male"] == [AgeGroup(None, 50, 6), AgeGroup(50, None, 9)]


def test_all_from_90_on_are_one_group():
    table = age_table([(90, "female")] * 5 + [(117, "female")] * 5)
    assert table.groups["female"] == [AgeGroup(None, None, 10)]
    assert str(table.groups["female"][0]) == "all ages"


def test_a_sex_of_fewer_than_five_is_among_those_of_whom_it_is_not_known():
    table = age_table([(50, "male")] * 4 + [(None, "male"), (50, ""), *[(50, "female")] * 5])
    assert table.groups["male"] == []
    assert table.others == 6


@given(PATIENTS)
def test_no_group_has_fewer_than_five_and_nobody_is_lost(patients):
    table = age_table(patients)
    groups = [g for own in table.groups.values() for g in own]
    assert all(g.patients >= 5 for g in groups)
    assert sum(g.patients for g in groups) + table.others == len(patients)
    for sex, own in table.groups.items():
        ages = [age for age, s in patients if s == sex and age is not None]
        for g in own:
            within = [a for a in ages if (g.low is None or a >= g.low) and (g.high is None or a < g.high)]
            assert g.patients == len(within)
        assert all(g.high is None or g.high <= 90 for g in own)


@given(PATIENTS)
def test_the_order_of_patients_makes_no_difference(patients):
    assert age_table(patients) == age_table(patients[::-1])
