"""Tables: CSV files as people and their programs save them, and one message for all that is wrong with a file."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from label_efficient.files import plain_cell, printable, read_text

FILE_COLUMNS = ("file", "image", "path", "filename")
CLASS_COLUMNS = ("class", "label_name")
_MAX_SHOWN = 20
_MAX_CELL = 4096  # characters; no path is longer


@dataclass(frozen=True)
class Table:
    """A CSV with a header, whose columns are as it writes them.

    `lines` has the number, from 2, and the stripped cells by column of every line that is not empty; a line with fewer
    cells than columns has "" for those that it lacks.
    """

    columns: list[str]
    lines: list[tuple[int, dict[str, str]]]

    def column(self, *names: str) -> str | None:
        """The column of the first of these names that there is, in whatever case it is written."""
        written = {column.lower(): column for column in reversed(self.columns)}
        return next((written[name] for name in names if name in written), None)


def read_table(path: Path) -> Table:
    """Read a CSV in UTF-8, or in UTF-16 with its byte-order mark, separated by comma, semicolon or tab.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is no text, no table, or has no header; with line and column.
    """
    numbers, cells = zip(*read_cells(path), strict=True)
    columns = cells[0]
    if twice := [column for column in columns if column and columns.count(column) > 1]:
        raise ValueError(f"{path}, line 1: two columns are called {twice[0]!r}")
    problems = [
        f"line {number} has {len(line)} cells, and there are {len(columns)} columns: text with a comma needs quotes"
        for number, line in zip(numbers, cells, strict=True)
        if any(line[len(columns) :])
    ]
    if problems:
        raise ValueError(listed(path, problems))
    padded = [line + [""] * len(columns) for line in cells[1:]]
    return Table(columns, [(n, dict(zip(columns, c, strict=False))) for n, c in zip(numbers[1:], padded, strict=True)])


def read_cells(path: Path) -> list[tuple[int, list[str]]]:
    """Number, and stripped cells, of all lines of a CSV that are not empty; see `read_table`."""
    text = read_text(path)
    delimiter = max(",;\t", key=text.lstrip().split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines, start = list[tuple[int, list[str]]](), 1
    try:
        for line in reader:
            if any(cells := [plain_cell(cell.strip()) for cell in line]):
                lines.append((start, cells))
            if wide := [n for n, cell in enumerate(line, start=1) if len(cell) > _MAX_CELL]:
                raise csv.Error(f"column {wide[0]} has more than {_MAX_CELL} characters")
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {start}: not readable as CSV ({error})") from error
    if not lines:
        raise ValueError(f"{path}: the file is empty")
    return lines


def listed(source: str | Path, problems: Sequence[str]) -> str:
    """Message with all problems of a source, or the first of very many and their number."""
    shown = [f"{problem:.1000}" for problem in problems[:_MAX_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return printable(f"{source}: {len(problems)} problem{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(shown))
