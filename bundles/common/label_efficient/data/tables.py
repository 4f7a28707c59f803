"""Tables: CSV files as people and their programs save them, and one message for all that is wrong with a file."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from label_efficient.files import plain_cell

FILE_COLUMNS = ("file", "image", "path", "filename")
CLASS_COLUMNS = ("class", "label_name")
_MAX_SHOWN = 20


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
    """Read a CSV in UTF-8, with or without a byte-order mark, separated by comma, semicolon or tab.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8 text, not a table, or has no header.
    """
    columns, *cells = read_cells(path) or [[]]
    if not columns:
        raise ValueError(f"{path}: the file is empty")
    padded = [(number, line + [""] * len(columns)) for number, line in enumerate(cells, start=2) if any(line)]
    return Table(columns, [(number, dict(zip(columns, line, strict=False))) for number, line in padded])


def read_cells(path: Path) -> list[list[str]]:
    """Stripped cells of all lines of a CSV; see `read_table`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not readable as CSV (not UTF-8: {error.reason}); save it as CSV in UTF-8") from error
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [[plain_cell(cell.strip()) for cell in line] for line in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not readable as CSV ({error})") from error


def listed(source: str | Path, problems: Sequence[str]) -> str:
    """Message with all problems of a source, or the first of very many and their number."""
    shown = list(problems[:_MAX_SHOWN])
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return f"{source}: {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n  " + "\n  ".join(shown)
