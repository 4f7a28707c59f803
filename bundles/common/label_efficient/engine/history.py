"""`history.csv`: one row an epoch."""

import csv
from pathlib import Path


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of a `history.csv`, without its empty cells."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
