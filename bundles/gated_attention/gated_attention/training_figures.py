"""Figures of a training: its history, and lambda beside the losses that it weighs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from label_efficient.report.drawing import new_figure, save_figure
from label_efficient.report.history_figures import History, epoch_axis, legend_below, lines, save_history, series

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


def draw_training(folder: Path, *, history: History, metrics: Mapping[str, Any]) -> dict[Path, str]:
    """Draw what there is of a training; returns the files and their captions.

    Args:
        folder: Where to draw.
        history: Rows of `history.csv`.
        metrics: Content of `metrics.json`.
    """
    path = folder / "history.png"
    save_history(path, history=history, losses=LOSSES, metrics=METRICS, best_epoch=metrics["chosen_epoch"])
    drawn = {path: "Losses and validation figures by epoch"}
    if "train_lambda" in history[-1]:
        path = folder / "lambda.png"
        save_lambda(path, history=history)
        drawn[path] = "Lambda, the weight of the global branch's loss"
    return drawn


def save_lambda(path: Path, *, history: History) -> None:
    """Lambda over the epochs, and the accuracy of fusion and global branch on validation under it.

    Args:
        path: PNG file to write.
        history: Rows with `train_lambda`, and where validated `val_acc` and `val_global_acc`.
    """
    epochs = series(history, "epoch", required=True)
    figure = new_figure(6.4, 5.2)
    upper, lower = figure.subplots(2, 1, height_ratios=[1.0, 1.6], sharex=True)
    weight = series(history, "train_lambda", required=True)
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
    save_figure(figure, path)
