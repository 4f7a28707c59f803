"""What changed over the epochs of a training: the figure of its history, and what such figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from label_efficient.report.drawing import COLOURS, MUTED, add_grid, line_style, new_figure, save_figure
from label_efficient.run_account import Folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, float]]


def draw_history(
    folder: Folder,
    history: History,
    run: Mapping[str, Any],
    losses: Mapping[str, str],
    metrics: Mapping[str, str],
    what: str = "Losses",
) -> dict[Path, str]:
    """Draw the history of a run, whose `metrics.json` says which epoch was kept; the file and its caption."""
    epoch = run["chosen_epoch"]
    path = save_history(folder / "history.png", history=history, losses=losses, metrics=metrics, best_epoch=epoch)
    return {path: f"{what} and validation figures by epoch"}


def save_history(
    path: Path, *, history: History, losses: Mapping[str, str], metrics: Mapping[str, str], best_epoch: int | None
) -> Path:
    """Losses, validation metrics and, where it varies, the learning rate over the epochs; `best_epoch` is marked.

    `losses` and `metrics` say what columns are called; the first metric that has values has chosen the epoch.
    """
    epochs = series(history, "epoch")
    rate = series(history, "learning_rate")
    varies = len(np.unique(rate[np.isfinite(rate)])) > 1
    widths = [1.0, 1.0, 0.7] if varies else [1.0, 1.0]
    figure = new_figure(4.4 * sum(widths), 3.9)
    panels = figure.subplots(1, len(widths), width_ratios=widths)

    drawn = lines(panels[0], epochs, {label: series(history, key) for key, label in losses.items()})
    log_if_wide(panels[0], drawn)
    panels[0].set(title="Losses", ylabel="loss (cross-entropy in nats)")
    known = {label: values for key, label in metrics.items() if np.isfinite(values := series(history, key)).any()}
    lines(panels[1], epochs, known)
    panels[1].set(title="Validation", ylabel="share (1 is best)")
    if varies:
        lines(panels[2], epochs, {"learning rate": rate})
        panels[2].set(title="Learning rate", ylabel="learning rate")
    for axes in panels:
        if best_epoch is not None:
            axes.axvline(best_epoch, color=MUTED, linewidth=1, linestyle="--", zorder=1)
        epoch_axis(axes, epochs)
    if best_epoch is not None:
        if best_epoch not in epochs:
            raise ValueError(f"best_epoch {best_epoch} is not in the history ({len(epochs)} epochs)")
        label, values = next(iter(known.items()), ("", np.full(len(epochs), np.nan)))
        value = values[epochs == best_epoch][-1]
        text = f"chosen epoch {best_epoch}" + (f": {label} {value:.3f}" if np.isfinite(value) else "")
        panels[1].plot([best_epoch], [value], "o", color=COLOURS[0], markersize=7, label=text)
    for axes in panels[:2]:
        legend_below(axes, columns=2)
    return save_figure(figure, path)


def series(history: History, key: str) -> np.ndarray:
    """Column of the history, NaN where a row has no value."""
    return np.array([row.get(key, np.nan) for row in history], dtype=float)


def lines(
    axes: Axes, epochs: np.ndarray, series: Mapping[str, np.ndarray], spreads: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Draw the series that have values, each with its band; return all drawn values, flat."""
    drawn = [np.empty(0)]
    for position, (label, values) in enumerate(series.items()):
        known = np.isfinite(values)
        if not known.any():
            continue
        look = line_style(position) | {"marker": "o" if known.sum() <= 12 else "", "markersize": 4}
        colour = look["color"]
        places = epochs[known]
        if len(epochs) == 1 and spreads:  # side by side, or they would hide one another
            places = places + 0.06 * (position - (len(series) - 1) / 2)
        axes.plot(places, values[known], label=label, **look)
        drawn.append(values[known])
        if spreads is not None and np.isfinite(spreads[label][known]).all():
            half = spreads[label][known]
            low, high = np.clip(values[known] - half, 0, None), values[known] + half
            if known.sum() == 1:  # a band of no width would not be seen
                axes.errorbar(places, values[known], yerr=half, color=colour, capsize=4)
            else:
                axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
    if len(drawn) == 1:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=MUTED)
    return np.concatenate(drawn)


def log_if_wide(axes: Axes, drawn: np.ndarray) -> None:
    """Logarithmic height where all values are positive and the largest is more than 50 times the smallest."""
    if len(drawn) and drawn.min() > 0 and drawn.max() > 50 * drawn.min():
        axes.set_yscale("log")


def epoch_axis(axes: Axes, epochs: np.ndarray) -> None:
    """Whole epochs along the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    first, last = float(epochs.min()), float(epochs.max())
    pad = 0.02 * (last - first) if last > first else 0.5
    axes.set(xlabel="epoch", xlim=(first - pad, last + pad))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    add_grid(axes)


def legend_below(axes: Axes, columns: int, figure: Figure | None = None) -> None:
    """Legend under the axes, where it covers no curve; under the whole figure if one is given."""
    handles, labels = axes.get_legend_handles_labels()
    look: dict[str, Any] = {"frameon": False, "fontsize": 9}
    if figure is not None and handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), **look)
    elif handles:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, **look)
