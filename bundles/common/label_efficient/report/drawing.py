"""What the figures share: colours, a figure without a display, PNG files."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from label_efficient.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
# Okabe and Ito's colours without yellow, which is lost on white; the line style tells repeats apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
INK, MUTED, FAINT = "#1C2330", "#6B7480", "#A9B1BC"


def new_figure(width: float, height: float, constrained: bool = True) -> Figure:
    """A figure that belongs to no window and to no global list."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06) if constrained else None
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as one PNG, cut to what is drawn; returns the file."""
    look: dict[str, Any] = {"dpi": DPI, "bbox_inches": "tight", "pad_inches": 0.08}
    write_whole(path, lambda file: figure.savefig(file, format="png", **look))
    return path


def line_style(position: int) -> dict[str, Any]:
    """Colour and line of the curve at a position."""
    again, colour = divmod(position, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": LINES[again % len(LINES)]}


def wrap_text(text: object, width: int) -> str:
    """The text in lines of at most `width` characters, with nothing in it that matplotlib interprets."""
    plain = str(text).encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")
    lines = [textwrap.wrap(part, width) or [""] for part in plain.splitlines()]
    wrapped = "\n".join(line for part in lines for line in part)
    return f" {wrapped}" if wrapped.startswith("_") else wrapped  # a legend drops leading underscores


def add_grid(axes: Axes) -> None:
    """Faint grid behind the curves, and no frame at the top and right."""
    axes.grid(color="#E4E8ED", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
