"""Figures as tables in the log."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from label_efficient.engine.log import table

logger = logging.getLogger(__name__)


AT_A_THRESHOLD = ("sensitivity", "specificity", "precision", "acc")


def operating_columns(point: Mapping[str, Any]) -> tuple[str, str, dict[str, Mapping[str, Any]]]:
    """Of the operating point in `metrics.json`: its class, what it is, and the figures by section."""
    validation = point["validation"]
    of = validation.get("positive_class", "the second class")
    title = (
        f"at the threshold {validation['threshold']:.4f} of {of}, chosen on validation for a specificity of at least "
        f"{validation['target_specificity']:g}"
    )
    return of, title, {name: figures for name, figures in point.items() if isinstance(figures, Mapping)}


def show_operating_point(metrics: Mapping[str, Any]) -> None:
    """Log the operating point of a binary task, if there is one."""
    if "operating_point" in metrics:
        _, title, columns = operating_columns(metrics["operating_point"])
        show_table(title, side_by_side(AT_A_THRESHOLD, columns))


def show_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log rows as a table, if there are any; figures with four digits."""
    if rows:
        logger.info("%s:\n%s", title, table(rows, lambda v: f"{v:.4f}" if isinstance(v, float) else str(v)))


def side_by_side(
    names: Sequence[str], columns: Mapping[str, Mapping[str, Any]], head: str = "figure"
) -> list[dict[str, Any]]:
    """Rows of a table: a figure a row, under `head` its name, as far as a column has it."""
    return [
        {head: name, **{column: values.get(name, "") for column, values in columns.items()}}
        for name in names
        if any(name in values for values in columns.values())
    ]
