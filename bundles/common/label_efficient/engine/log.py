"""The log of a run: its file, its warnings, and tables and durations in words."""

import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from label_efficient.engine.ending import at_end

logger = logging.getLogger(__name__)

SHOWN_OF_A_KIND = 5


class _RunLog(logging.FileHandler):
    """The file of a run's log: UTF-8, what cannot be written so escaped. A full disk costs lines, and no run."""

    failed = False

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Say it once, elsewhere."""
        if not self.failed:
            self.failed = True
            logger.warning("%s lacks lines from here on: %s", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        """Also take it from the root logger."""
        logging.getLogger().removeHandler(self)
        with contextlib.suppress(OSError):
            super().close()


class WarningsOfRun(logging.Handler):
    """Collects the warnings while it is entered: equal ones once, of a kind only the first few, with their numbers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kinds: dict[str, Counter[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Count a warning."""
        kind, text = self.kinds.setdefault(str(record.msg), Counter()), record.getMessage()
        kind[text if text in kind or len(kind) < SHOWN_OF_A_KIND else ""] += 1

    def lines(self) -> list[str]:
        """A warning each, in the order of their kinds."""
        return [
            (text + (f" ({count} times)" if count > 1 else "")) if text else f"and {count} more of this kind"
            for kind in self.kinds.values()
            for text, count in kind.items()
        ]

    def __enter__(self) -> "WarningsOfRun":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger().removeHandler(self)


def warnings_so_far() -> list[str]:
    """The warnings of the run that is under way, see `WarningsOfRun.lines`; none outside of any."""
    found = [handler for handler in logging.getLogger().handlers if isinstance(handler, WarningsOfRun)]
    return found[-1].lines() if found else []


def log_traceback(error: BaseException) -> None:
    """Write to the file of the run's log, and nowhere else, what ended the run."""
    about = (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "the run was ended by", (), about)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _RunLog):
            handler.handle(record)


def log_to_file(path: Path) -> None:
    """Send everything that is logged to `path` too, instead of to an earlier run's file, until the run ends."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _RunLog)]:
        handler.close()
    root.addHandler(log := _RunLog(path))
    at_end(log.close)


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
