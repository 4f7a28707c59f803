"""Figures of a training: its history, and what the unlabelled images contributed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.report.drawing import new_figure, save_figure
from label_efficient.report.history_figures import (
    History,
    draw_history,
    epoch_axis,
    legend_below,
    lines,
    log_if_wide,
    series,
)
from label_efficient.run_account import Folder

LOSSES = {
    "train_loss": "total",
    "train_class_loss": "cross-entropy",
    "train_pseudo_label_loss": "pseudo-labels",
    "train_mask_loss": "Dice loss",
    "train_kl_loss": "KL",
}
METRICS = {"val_score": "score", "val_acc": "accuracy", "val_auc": "AUC", "val_dice": "Dice"}
_SHARES = {
    "train_pseudo_label_share": "images above the threshold",
    "train_pseudo_label_accuracy": "of these, labelled right",
}
_UNLABELLED_LOSSES = {
    "train_pseudo_label_loss": "pseudo-labels, cross-entropy",
    "train_kl_loss": "masks, KL divergence",
}


def save_pseudo_labels(path: Path, *, history: History) -> Path:
    """What the unlabelled images contributed by epoch: pseudo-labels and losses, as far as the history has them."""
    epochs = series(history, "epoch")
    shares = {label: series(history, key) for key, label in _SHARES.items()}
    losses = {label: series(history, key) for key, label in _UNLABELLED_LOSSES.items()}
    drawn = [curves for curves in (shares, losses) if np.isfinite([*curves.values()]).any()]
    figure = new_figure(4.6 * len(drawn), 3.9)
    for axes, curves in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        values = lines(axes, epochs, curves)
        if curves is shares:
            axes.set(title="Pseudo-labels", ylabel="share (1 is all)", ylim=(-0.03, 1.03))
        else:
            log_if_wide(axes, values)
            axes.set(title="Losses of the unlabelled images", ylabel="loss (nats), before its weight")
        epoch_axis(axes, epochs)
        legend_below(axes, columns=2)
    return save_figure(figure, path)


def draw_training(folder: Folder, *, history: History, metrics: Mapping[str, Any]) -> dict[Path, str]:
    """Draw what `history.csv` has of a training; the files and their captions."""
    drawn = draw_history(folder, history, metrics, LOSSES, METRICS, "Losses (without their weights)")
    if "train_pseudo_label_share" in history[-1]:
        path = save_pseudo_labels(folder / "pseudo_labels.png", history=history)
        drawn[path] = "Pseudo-labels of the unlabelled images"
    return drawn
