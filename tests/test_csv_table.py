"""Tables as spreadsheets and people leave them, and tables that spreadsheets open without running anything."""

from __future__ import annotations

import csv

import pytest

from aneurysm.csv_table import csv_text, read_csv_rows
from aneurysm.errors import DataError

COLUMNS = ["uid", "value"]
PLAIN = "uid,value\n1.2,a\n1.3,b\n"
EXPECTED = [(2, "1.2", "a"), (3, "1.3", "b")]


def _read(tmp_path, content: bytes, columns=COLUMNS):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    return [(row.line, *(row[c] for c in columns)) for row in read_csv_rows(path, columns)]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(PLAIN.encode(), id="plain"),
        pytest.param(PLAIN.encode("utf-8-sig"), id="UTF-8 with a mark"),
        pytest.param(PLAIN.encode("utf-16"), id="UTF-16 with a mark"),
        pytest.param(PLAIN.encode("utf-16-le"), id="UTF-16, little endian, without a mark"),
        pytest.param(PLAIN.encode("utf-16-be"), id="UTF-16, big endian, without a mark"),
        pytest.param(PLAIN.replace("\n", "\r\n").encode(), id="Windows' lines"),
        pytest.param(PLAIN.replace("\n", "\r").encode(), id="an old Mac's lines"),
        pytest.param(PLAIN.replace(",", ";").encode(), id="semicolons"),
        pytest.param(PLAIN.replace(",", "\t").encode(), id="tabs"),
        pytest.param(PLAIN.rstrip("\n").encode(), id="no last end of line"),
        pytest.param(PLAIN.replace("a\n", "a,\n").replace("b\n", "b,,\n").encode(), id="surplus commas in rows"),
        pytest.param(PLAIN.replace("\n", ",\n").encode(), id="surplus commas everywhere"),
        pytest.param(PLAIN.replace("\n", ",,,\n").encode(), id="three surplus commas"),
        pytest.param(PLAIN.replace("1.2,a", " 1.2\0,\ta ").encode(), id="blanks and NULs"),
        pytest.param(PLAIN.replace("uid", " UID ").encode(), id="another case"),
        pytest.param(b"uid,value,note\n1.2,a,Jos\xe9\n1.3,b,x\n", id="Latin-1 in another column"),
        pytest.param(b"note,value,uid\n,a,1.2\n,b,1.3\n", id="another order"),
        pytest.param(b'"uid","value"\n"1.2","a"\n"1.3","b"\n', id="quoted"),
        pytest.param((PLAIN + "\n,\n ,,\n").encode(), id="empty lines at the end"),
    ],
)
def test_what_spreadsheets_leave_is_read(tmp_path, content):
    assert _read(tmp_path, content) == EXPECTED


def test_lines_are_those_of_the_file(tmp_path):
    """Empty lines count, and so do lines within a quoted cell: a person looks for the number in an editor."""
    assert _read(tmp_path, b'\nuid,value\n\n1.2,"a\nb"\n1.3,c\n') == [(4, "1.2", "a\nb"), (6, "1.3", "c")]


@pytest.mark.parametrize(
    "content, message",
    [
        pytest.param(b"", r"is empty; expected the columns uid, value", id="empty"),
        pytest.param(b"\n\n", "is empty", id="empty lines"),
        pytest.param(b"uid,other\n1.2,a\n", r"lacks the column\(s\) value; it has uid, other", id="a column lacks"),
        pytest.param(b"uid,value,UID\n1.2,a,1.3\n", "has the column uid 2 times", id="a column twice"),
        pytest.param(b"uid,value\n1.2,a,b\n", "line 2 has 3 cells, and the header has 2", id="too many cells"),
        pytest.param(b"uid,value\n1.2,a\n1.3\n", "line 3 has 1 of 2 cells: is the file cut off", id="too few cells"),
        pytest.param(b'uid,value\n1.2,a\n1.3,"b\n', "line 3 can't be read as CSV", id="cut off in quotes"),
        pytest.param(PLAIN.encode("utf-16")[:-1], "can't be read as UTF-16", id="cut off in a character"),
        pytest.param(b"uid,value\n1.2," + b"a" * 200_000 + b"\n", "line 2 has a cell of 200000 characters", id="long"),
    ],
)
def test_what_is_no_table_is_one_clear_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as raised:
        _read(tmp_path, content)
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "table.csv") in str(raised.value)


def test_cells_are_no_part_of_a_message(tmp_path):
    with pytest.raises(DataError) as raised:
        _read(tmp_path, b"uid,value\n1.2,a,Doe^Jane\n")
    assert "Doe" not in str(raised.value)


def test_formulas_are_escaped_and_numbers_are_not(tmp_path):
    rows = [["=1+1", -2.5], ["+1 dose", "-3e-05"], ["@SUM(A1)", "-inf"], ["-x", "+4"], ["\t=1", 7], ["a=b", None]]
    text = csv_text(["text", "number"], rows)
    read = list(csv.reader(text.splitlines()))
    assert read == [
        ["text", "number"], ["'=1+1", "-2.5"], ["'+1 dose", "-3e-05"], ["'@SUM(A1)", "-inf"], ["'-x", "+4"],
        ["'\t=1", "7"], ["a=b", ""],
    ]  # fmt: skip


def test_rows_may_be_mappings_with_more_and_fewer_keys():
    assert csv_text(["a", "b"], [{"b": 2, "c": 3}, {"a": 1}]) == "a,b\n,2\n1,\n"


def test_a_float_comes_back_to_the_bit():
    assert float(csv_text(["x"], [[0.1 + 0.2]]).splitlines()[1]) == 0.1 + 0.2


@pytest.mark.parametrize("limit", [10, 10**9])
def test_a_limit_that_a_library_set_for_the_whole_process_changes_nothing(tmp_path, limit):
    before = csv.field_size_limit(limit)
    try:
        assert _read(tmp_path, b"uid,value\n1.2," + b"a" * 1000 + b"\n") == [(2, "1.2", "a" * 1000)]
        csv.field_size_limit(limit)
        with pytest.raises(DataError, match="at most"):
            _read(tmp_path, b"uid,value\n1.2," + b"a" * 200_000 + b"\n")
    finally:
        csv.field_size_limit(before)
