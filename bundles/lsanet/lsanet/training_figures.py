"""Figures of a training: its history, and the layer selective attention over its epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.report.drawing import MUTED, new_figure, save_figure
from label_efficient.report.history_figures import History, draw_history, epoch_axis, legend_below, lines, series
from label_efficient.run_account import Folder

from .layer_attention import largest_ratio

LOSSES = {
    "train_loss": "training, total",
    "train_branch_loss": "training, branches",
    "train_synergy_loss": "training, synergy",
    "val_loss": "validation",
}
METRICS = {"val_auc": "AUC", "val_acc": "accuracy"}


def draw_training(folder: Folder, *, history: History, metrics: Mapping[str, Any]) -> dict[Path, str]:
    """Draw what there is of a training: the files and their captions."""
    settings, drawn = metrics["settings"], draw_history(folder, history, metrics, LOSSES, METRICS)
    # `handlers.LSAWeights` writes beta_<node>, beta_<node>_std and gate_<node> of every node, shallow to deep.
    nodes = [name.removeprefix("train_gate_") for name in history[-1] if name.startswith("train_gate_")]
    if nodes:
        max_ratio = largest_ratio(settings["lsa"], settings["lsa_temperature"])
        path = save_beta(folder / "beta.png", history=history, nodes=nodes, max_ratio=max_ratio)
        drawn[path] = "Layer selective attention: mean and spread of beta over the images"
    return drawn


def save_beta(path: Path, *, history: History, nodes: Sequence[str], max_ratio: float | None) -> Path:
    """Layer weights over the epochs: mean over images, band of one standard deviation; and the gates if there are any.

    `max_ratio` is the largest between two weights that the attention can reach, drawn as a range; None draws none.
    """
    epochs = series(history, "epoch")
    gates = {node: series(history, f"train_gate_{node}") for node in nodes}
    with_gates = any(np.isfinite(values).any() for values in gates.values())

    num_panels = 3 if with_gates else 2
    figure = new_figure(3.9 * num_panels, 3.9)
    panels = figure.subplots(1, num_panels)
    panels[1].sharey(panels[0])
    panels[1].tick_params(labelleft=False)
    for axes, prefix, title in zip(panels, ("train", "val"), ("Training", "Validation"), strict=False):
        means = {node: series(history, f"{prefix}_beta_{node}") for node in nodes}
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
    return save_figure(figure, path)
