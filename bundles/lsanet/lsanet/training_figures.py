"""Figures of a training: its history, and the layer selective attention over its epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from label_efficient.report import history_figures as _history_figures
from label_efficient.report.drawing import MUTED, new_figure, save_figure
from label_efficient.report.history_figures import History, epoch_axis, legend_below, lines, series

if TYPE_CHECKING:
    pass


_LOSSES = {
    "train_loss": "training, total",
    "train_branch_loss": "training, branches",
    "train_synergy_loss": "training, synergy",
    "val_loss": "validation",
}
_METRICS = {"val_auc": "AUC", "val_acc": "accuracy"}


def save_history(path: Path, *, history: History, best_epoch: int | None = None) -> None:
    """Losses of LSANet, validation metrics and learning rate, see `_history_figures.save_history`."""
    _history_figures.save_history(path, history=history, losses=_LOSSES, metrics=_METRICS, best_epoch=best_epoch)


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
    epochs = series(history, "epoch", required=True)
    gates = {node: series(history, f"train_gate_{node}") for node in nodes}
    with_gates = any(np.isfinite(values).any() for values in gates.values())

    num_panels = 3 if with_gates else 2
    figure = new_figure(3.9 * num_panels, 3.9)
    panels = figure.subplots(1, num_panels)
    panels[1].sharey(panels[0])
    panels[1].tick_params(labelleft=False)
    for axes, prefix, title in zip(panels, ("train", "val"), ("Training", "Validation"), strict=False):
        must = prefix == "train"
        means = {node: series(history, f"{prefix}_beta_{node}", required=must) for node in nodes}
        spreads = {node: series(history, f"{prefix}_beta_{node}_std") for node in nodes}
        lines(axes, epochs, means, spreads)
        axes.axhline(1 / len(nodes), color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)), label="equal weights")
        if max_ratio is not None and len(nodes) > 1:
            others = len(nodes) - 1
            low, high = 1 / (1 + others * max_ratio), max_ratio / (max_ratio + others)
            axes.axhspan(low, high, color="#EEF1F5", zorder=0, label=f"reachable: {low:.3f} to {high:.3f}")
        axes.set_title(title)
    panels[0].set_ylabel("layer weight beta (mean, band: 1 s.d.)")
    if with_gates:
        lines(panels[2], epochs, gates)
        panels[2].set(title="Saturation, training", ylabel="mean of the sigmoids", ylim=(-0.03, 1.03))
    for axes in panels:
        epoch_axis(axes, epochs)
    legend_below(panels[0], columns=3, figure=figure)
    save_figure(figure, path)
