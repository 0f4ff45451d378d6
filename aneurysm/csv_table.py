"""CSV tables: reading those that people and spreadsheets left, and writing those that spreadsheets open safely."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aneurysm.errors import DataError

MAX_BYTES: Final = 512 * 1024 * 1024
"""Limit of a table's size: a million series take 0.2 GB."""
MAX_CELL: Final = 1 << 17
"""Limit of a cell's length in characters, csv's own default: a quote that nobody closed swallows all that follows."""
_PIECE: Final = 2**16
_DELIMITERS: Final = ",;\t|"
_FORMULA_STARTS: Final = tuple("=+-@\t\r")
"""A spreadsheet takes a cell that begins with one of these for a formula, and runs it."""
_BLANK: Final = " \t\r\n\0\ufeff\u00a0"


@dataclass(frozen=True)
class TableRow:
    """One row: ``line`` is its first line in the file, from 1; ``cells`` maps the names of columns to text."""

    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def read_csv_rows(
    path: Path, columns: Sequence[str], *, max_cell: int = MAX_CELL, max_bytes: int = MAX_BYTES
) -> Iterator[TableRow]:
    """
    Yield the rows of the table at ``path``, with the ``columns`` at least, stripped of blanks and NULs.

    Read are UTF-8 and UTF-16, with or without a byte order mark, and Latin-1; commas, semicolons, tabs or bars between
    cells; any end of line; surplus empty cells at the end of a line; names of columns in any case. Empty lines are
    skipped. A cell holds ``max_cell`` characters at most, the file ``max_bytes``.

    Raises
    ------
    DataError
        It can't be read as a table, lacks a column, or a line has too many or too few cells. The message names the
        line, and no cell: it might hold a patient's name.
    OSError
        The operating system can't read the file.
    """
    if (size := path.stat().st_size) > max_bytes:
        raise DataError(f"{path} has {size} bytes, at most {max_bytes} are read: it is no table of series")
    encoding = _encoding(path)
    # The limit of csv is one for the whole process, and whatever else runs in it (a library, say) may have set it.
    csv.field_size_limit(max_bytes)
    names: list[str] | None = None
    line = 1
    try:
        with path.open(encoding=encoding, newline="") as file:
            delimiter = _delimiter(file, columns)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if (longest := max(map(len, cells), default=0)) > max_cell:
                    raise DataError(
                        f"{path} line {line} has a cell of {longest} characters, at most {max_cell} are read"
                    )
                cells = [cell.strip(_BLANK) for cell in cells]
                if any(cells):
                    if names is None:
                        names = _header(path, cells, columns)
                    else:
                        yield _row(path, line, cells, names)
                line = reader.line_num + 1
    except csv.Error as error:
        # An open quote swallows all lines that follow, so it is the row's first line that helps.
        raise DataError(f"{path} line {line} can't be read as CSV: {error}. Is the file cut off?") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} can't be read as {encoding.upper()}: {error.reason}. Is the file cut off?") from error
    if names is None:
        raise DataError(f"{path} is empty; expected the columns {', '.join(columns)}")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any] | Sequence[Any]]) -> str:
    """
    Return a CSV table with a header; rows are mappings (surplus keys are left out) or sequences in the columns' order.

    Text that a spreadsheet would run as a formula gets an apostrophe before it; numbers stay as they are.
    """
    cells = ([row.get(name, "") for name in columns] if isinstance(row, Mapping) else row for row in rows)
    return "".join(map(csv_line, (columns, *cells)))


def csv_line(cells: Iterable[Any]) -> str:
    """Return one line of a CSV table; see `csv_text`."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow([_escaped(cell) for cell in cells])
    return text.getvalue()


def _escaped(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(_FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        piece = file.read(64)
        if piece[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        if len(piece) > 3 and not any(piece[1::2]):
            return "utf-16-le"  # ASCII in UTF-16 without a mark: every second byte is 0
        if len(piece) > 3 and not any(piece[::2]):
            return "utf-16-be"
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while piece:
                decoder.decode(piece)
                piece = file.read(_PIECE)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            # Of columns that are read all text is ASCII; a comment beside them may be in a spreadsheet's own encoding.
            return "latin-1"
    return "utf-8-sig"


def _delimiter(lines: Iterable[str], columns: Sequence[str]) -> str:
    """Return the delimiter that gives most of the ``columns``, by the first line that is not empty."""
    first = next((line for line in lines if line.strip(_BLANK)), "")
    wanted = {column.casefold() for column in columns}

    def found(delimiter: str) -> int:
        return len(wanted & {cell.strip(_BLANK + '"').casefold() for cell in first.split(delimiter)})

    return max(_DELIMITERS, key=found)


def _header(path: Path, cells: list[str], columns: Sequence[str]) -> list[str]:
    while cells and not cells[-1]:
        cells = cells[:-1]
    by_case = {column.casefold(): column for column in columns}
    names = [by_case.get(cell.casefold(), cell) for cell in cells]
    if missing := [column for column in columns if column not in names]:
        raise DataError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(names)}")
    if doubled := [column for column in columns if names.count(column) > 1]:
        raise DataError(f"{path} has the column {doubled[0]} {names.count(doubled[0])} times, expected once")
    return names


def _row(path: Path, line: int, cells: list[str], names: list[str]) -> TableRow:
    surplus = cells[len(names) :]
    if any(surplus):
        raise DataError(
            f"{path} line {line} has {len(cells)} cells, and the header has {len(names)}: a cell that holds the "
            "delimiter must be in double quotes"
        )
    if len(cells) < len(names):
        raise DataError(f"{path} line {line} has {len(cells)} of {len(names)} cells: is the file cut off?")
    return TableRow(line, dict(zip(names, cells, strict=False)))
