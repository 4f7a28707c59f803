"""The log of a run: its file, and tables and durations in words."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def log_to_file(path: Path) -> None:
    """Send everything that is logged to `path` too, instead of to an earlier run's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler) and getattr(handler, "of_a_run", False):
            root.removeHandler(handler)
            handler.close()
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.of_a_run = True  # type: ignore[attr-defined]
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)


def table(rows: Sequence[Mapping[str, Any]], write: Callable[[Any], str] = str) -> str:
    """Rows of equal keys as aligned plain text."""
    columns = list(rows[0])
    cells = [columns, *[[write(row[c]) for c in columns] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
