"""Figures of a training: its history, and lambda beside the losses that it weighs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from label_efficient.report.drawing import new_figure, save_figure
from label_efficient.report.history_figures import History, draw_history, epoch_axis, legend_below, lines, series
from label_efficient.run_account import Folder

LOSSES = {
    "train_loss": "total",
    "train_global_loss": "global branch",
    "train_fusion_loss": "fusion",
    "val_loss": "validation, total",
}
METRICS = {
    "val_auc": "AUC",
    "val_acc": "accuracy",
    "val_global_auc": "AUC, global branch",
    "val_global_acc": "accuracy, global branch",
}


def draw_training(folder: Folder, *, history: History, metrics: Mapping[str, Any]) -> dict[Path, str]:
    """Draw what `history.csv` has of a training; the files and their captions."""
    drawn = draw_history(folder, history, metrics, LOSSES, METRICS)
    if "train_lambda" in history[-1]:
        drawn[save_lambda(folder / "lambda.png", history=history)] = "Lambda, the weight of the global branch's loss"
    return drawn


def save_lambda(path: Path, *, history: History) -> Path:
    """Lambda over the epochs, and the accuracy of fusion and global branch on validation under it."""
    epochs = series(history, "epoch")
    figure = new_figure(6.4, 5.2)
    upper, lower = figure.subplots(2, 1, height_ratios=[1.0, 1.6], sharex=True)
    weight = series(history, "train_lambda")
    # The colours are those of the panel below.
    lines(upper, epochs, {"fusion: 1 - lambda": 1 - weight, "global branch: lambda": weight})
    upper.set(title="Weights of the two losses", ylabel="weight", ylim=(-0.05, 1.05))
    accuracy = {"fusion": series(history, "val_acc"), "global branch": series(history, "val_global_acc")}
    lines(lower, epochs, accuracy)
    lower.set(title="Accuracy on validation", ylabel="accuracy")
    for axes in (upper, lower):
        epoch_axis(axes, epochs)
    upper.set_xlabel("")
    legend_below(lower, columns=2, figure=figure)
    return save_figure(figure, path)
