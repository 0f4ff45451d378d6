"""Ages and sexes of train.csv: as people write them, and nothing where they write something else."""

from __future__ import annotations

import pytest

from aneurysm.errors import DataError
from aneurysm.rawdata.demographics import Demographics, read_demographics


def read(tmp_path, text: str) -> dict[str, Demographics]:
    (tmp_path / "train.csv").write_text(text)
    return read_demographics(tmp_path / "train.csv")


@pytest.mark.parametrize(
    "age, sex, years, known",
    [
        ("63", "Female", 63, "female"),
        ("63.0", "M", 63, "male"),
        ("063Y", "f", 63, "female"),
        ("0", "MALE", 0, "male"),
        ("120", "", 120, ""),
        ("121", "O", None, ""),
        ("006M", "nan", None, ""),
        ("-3", "woman", None, ""),
        ("63 67", "Male Female", None, ""),
        ("٦٣", "Männlich", None, ""),
    ],
)
def test_what_is_an_age_or_a_sex(tmp_path, age, sex, years, known):
    found = read(tmp_path, f"SeriesInstanceUID,PatientAge,PatientSex\n1.2,{age},{sex}\n")
    assert found == {"1.2": Demographics(years, known)}


def test_columns_may_be_absent_or_named_in_another_case(tmp_path):
    assert read(tmp_path, "SeriesInstanceUID,x\n1.2,3\n") == {"1.2": Demographics()}
    assert read(tmp_path, "seriesinstanceuid;PATIENTSEX\n1.2;F\n") == {"1.2": Demographics(None, "female")}


def test_of_rows_that_contradict_each_other_nothing_is_known(tmp_path):
    rows = "1.2,50,F\n1.3,60,M\n1.2,50,F\n1.3,61,M\n"
    found = read(tmp_path, f"SeriesInstanceUID,PatientAge,PatientSex\n{rows}")
    assert found == {"1.2": Demographics(50, "female"), "1.3": Demographics()}


def test_without_a_table_there_is_nothing_and_a_damaged_one_is_refused(tmp_path):
    assert read_demographics(tmp_path / "train.csv") == {}
    with pytest.raises(DataError, match="line 2: SeriesInstanceUID is empty"):
        read(tmp_path, "SeriesInstanceUID,PatientAge,PatientSex\n,50,F\n")
