"""Figures of a training: its history, and lambda beside the losses that it weighs."""

from pathlib import Path

from label_efficient.report import history_figures as _history_figures
from label_efficient.report.drawing import new_figure, save_figure
from label_efficient.report.history_figures import History, epoch_axis, legend_below, lines, series

_LOSSES = {
    "train_loss": "total",
    "train_global_loss": "global branch",
    "train_fusion_loss": "fusion",
    "val_loss": "validation, total",
}
_METRICS = {
    "val_auc": "AUC",
    "val_acc": "accuracy",
    "val_global_auc": "AUC, global branch",
    "val_global_acc": "accuracy, global branch",
}


def save_history(path: Path, *, history: History, best_epoch: int | None = None) -> None:
    """Losses, validation metrics and learning rate, see `_history_figures.save_history`."""
    _history_figures.save_history(path, history=history, losses=_LOSSES, metrics=_METRICS, best_epoch=best_epoch)


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
