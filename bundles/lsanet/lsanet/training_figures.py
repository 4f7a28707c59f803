"""Figures of a training: what changed over its epochs. Every function writes one PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._drawing import COLOURS, LINES, MUTED, add_grid, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]


def save_history(path: Path, *, history: History, best_epoch: int | None = None) -> None:
    """Losses, validation metrics and, where it varies, the learning rate over the epochs.

    Args:
        path: PNG file to write.
        history: rows of ``history.csv``; values may be numbers, text, empty or absent.
        best_epoch: the epoch that was kept, marked in every panel.
    """
    epochs = _series(history, "epoch", required=True)
    rate = _series(history, "learning_rate")
    varies = len(np.unique(rate[np.isfinite(rate)])) > 1
    widths = [1.0, 1.0, 0.7] if varies else [1.0, 1.0]
    figure = new_figure(4.4 * sum(widths), 3.9)
    panels = figure.subplots(1, len(widths), width_ratios=widths)

    losses = {
        "train_loss": "training, total",
        "train_branch_loss": "training, branches",
        "train_synergy_loss": "training, synergy",
        "val_loss": "validation",
    }
    metrics = {"val_auc": "AUC", "val_acc": "accuracy"}
    drawn = _lines(panels[0], epochs, {label: _series(history, key) for key, label in losses.items()})
    positive = drawn[drawn > 0]
    if len(positive) == len(drawn) > 0 and positive.max() > 50 * positive.min():
        panels[0].set_yscale("log")
    panels[0].set(title="Losses", ylabel="loss (cross-entropy in nats)")
    _lines(panels[1], epochs, {label: _series(history, key) for key, label in metrics.items()})
    panels[1].set(title="Validation", ylabel="share (1 is best)")
    if varies:
        _lines(panels[2], epochs, {"learning rate": rate})
        panels[2].set(title="Learning rate", ylabel="learning rate")
    for axes in panels:
        if best_epoch is not None:
            axes.axvline(best_epoch, color=MUTED, linewidth=1, linestyle="--", zorder=1)
        _epoch_axis(axes, epochs)
    if best_epoch is not None:
        at = np.flatnonzero(epochs == best_epoch)
        if not len(at):
            raise ValueError(f"best_epoch {best_epoch} is not in the history ({len(epochs)} epochs)")
        value = _series(history, "val_auc")[at[-1]]
        text = f"chosen epoch {best_epoch}" + (f": AUC {value:.3f}" if np.isfinite(value) else "")
        panels[1].plot([best_epoch], [value], "o", color=COLOURS[0], markersize=7, label=text)
    for axes in panels[:2]:
        _legend_below(axes, columns=2)
    save_figure(figure, path)


def save_beta(path: Path, *, history: History, nodes: Sequence[str], max_ratio: float | None = math.e) -> None:
    """Layer weights over the epochs: mean over images, band of one standard deviation.

    Args:
        path: PNG file to write.
        history: rows with ``train_beta_<node>``, ``train_beta_<node>_std``, the same for ``val``, and
            optionally ``train_gate_<node>``, the mean of the node's sigmoids.
        nodes: names of the output nodes, shallow to deep.
        max_ratio: the largest ratio between two weights that the attention can reach, drawn as a
            range: e for a softmax of sigmoid means; None draws none.
    """
    if not nodes:
        raise ValueError("nodes must name at least one output node")
    if max_ratio is not None and max_ratio < 1:
        raise ValueError(f"max_ratio must be at least 1, got {max_ratio}")
    epochs = _series(history, "epoch", required=True)
    gates = {node: _series(history, f"train_gate_{node}") for node in nodes}
    with_gates = any(np.isfinite(values).any() for values in gates.values())

    num_panels = 3 if with_gates else 2
    figure = new_figure(3.9 * num_panels, 3.9)
    panels = figure.subplots(1, num_panels)
    panels[1].sharey(panels[0])
    panels[1].tick_params(labelleft=False)
    for axes, prefix, title in zip(panels, ("train", "val"), ("Training", "Validation"), strict=False):
        must = prefix == "train"
        means = {node: _series(history, f"{prefix}_beta_{node}", required=must) for node in nodes}
        spreads = {node: _series(history, f"{prefix}_beta_{node}_std") for node in nodes}
        _lines(axes, epochs, means, spreads)
        axes.axhline(1 / len(nodes), color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)), label="equal weights")
        if max_ratio is not None and len(nodes) > 1:
            others = len(nodes) - 1
            low, high = 1 / (1 + others * max_ratio), max_ratio / (max_ratio + others)
            axes.axhspan(low, high, color="#EEF1F5", zorder=0, label=f"reachable: {low:.3f} to {high:.3f}")
        axes.set_title(title)
    panels[0].set_ylabel("layer weight beta (mean, band: 1 s.d.)")
    if with_gates:
        _lines(panels[2], epochs, gates)
        panels[2].set(title="Saturation, training", ylabel="mean of the sigmoids", ylim=(-0.03, 1.03))
    for axes in panels:
        _epoch_axis(axes, epochs)
    _legend_below(panels[0], columns=3, figure=figure)
    save_figure(figure, path)


def _series(history: History, key: str, required: bool = False) -> np.ndarray:
    """Column of the history as floats, NaN where a value is absent, empty or text."""
    if not history:
        raise ValueError("history has no rows")
    values = np.full(len(history), np.nan)
    for row, entry in enumerate(history):
        value = entry.get(key)
        if value is not None and value != "":
            try:
                values[row] = float(value)
            except (TypeError, ValueError):
                raise ValueError(f"history: {key} in row {row} is not a number: {value!r}") from None
    if required and not np.isfinite(values).any():
        raise ValueError(f"history has no values of {key!r}; its columns: {', '.join(map(str, history[0]))}")
    return values


def _lines(
    axes: Axes,
    epochs: np.ndarray,
    series: Mapping[str, np.ndarray],
    spreads: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Draw the series that have values, each with its band; return all drawn values, flat."""
    drawn = [np.empty(0)]
    for position, (label, values) in enumerate(series.items()):
        known = np.isfinite(values) & np.isfinite(epochs)
        if not known.any():
            continue
        colour = COLOURS[position % len(COLOURS)]
        style = LINES[position // len(COLOURS) % len(LINES)]
        marker = "o" if known.sum() <= 12 else ""
        look: dict[str, Any] = {"color": colour, "linestyle": style, "marker": marker, "markersize": 4}
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


def _epoch_axis(axes: Axes, epochs: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = float(np.nanmin(epochs)), float(np.nanmax(epochs))
    pad = 0.02 * (last - first) if last > first else 0.5
    axes.set(xlabel="epoch", xlim=(first - pad, last + pad))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    add_grid(axes)


def _legend_below(axes: Axes, columns: int, figure: Figure | None = None) -> None:
    """Legend under the axes, where it covers no curve; under the whole figure if one is given."""
    handles, labels = axes.get_legend_handles_labels()
    look: dict[str, Any] = {"frameon": False, "fontsize": 9}
    if figure is not None and handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), **look)
    elif handles:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, **look)
