"""Figures of predictions: confusion matrix, ROC, reliability. Every function writes one PNG and returns its path."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.report.drawing import (
    COLOURS,
    FAINT,
    INK,
    LINES,
    MUTED,
    add_grid,
    line_style,
    new_figure,
    save_figure,
    wrap_text,
)

BINS = 15  # of equal width, of a reliability diagram


def save_confusion_matrix(path: Path, *, counts: np.ndarray, classes: Sequence[str]) -> Path:
    """Confusion matrix, K x K integers with a row a true class: colour is the row's share, numbers are images."""
    num_classes, totals = len(classes), counts.sum(axis=1)
    share = counts / np.maximum(totals, 1)[:, None]

    names = [wrap_text(name, 24) for name in classes]
    digits = max(len(str(counts.max())), 2)
    cell = float(np.clip(0.13 * digits, 0.5 if num_classes < 20 else 0.32, 0.9))
    side = max(cell * num_classes, 2.0)
    margin = 0.085 * max(len(line) for name in names for line in name.split("\n"))
    figure = new_figure(side + margin + 2.1, side + (margin if num_classes > 2 else 0.3) + 0.9)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks = range(num_classes)
    axes.set_xticks(ticks, names, fontsize=9)
    if num_classes > 2:
        axes.tick_params(axis="x", rotation=90)
    axes.set_yticks(ticks, [f"{name} ({total})" for name, total in zip(names, totals, strict=True)], fontsize=9)
    axes.set(xlabel="predicted class", ylabel="true class (images)")
    axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#DDE2E9", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    size = min(10.0, 72 * side / num_classes / (0.75 * digits))
    for (row, column), count in np.ndenumerate(counts):
        ink = "white" if share[row, column] > 0.55 else INK if count else FAINT
        axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=ink)
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=24, label="share of the true class")
    return save_figure(figure, path)


def save_roc(
    path: Path, *, targets: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], positive: int | None = 1
) -> Path:
    """One-vs-rest ROC curve of every class; two exclusive classes give that of the `positive` one.

    Of class indices (N,), or 0/1 N x K for several labels an image, and probabilities N x K.
    """
    from sklearn.metrics import auc, roc_curve

    num_classes = len(classes)
    truth = targets if targets.ndim == 2 else targets[:, None] == np.arange(num_classes)
    shown = [positive] if targets.ndim == 1 and num_classes == 2 and positive is not None else range(num_classes)

    columns = 1 if len(shown) <= 16 else 2
    figure = new_figure(5.2 + 3.2 * columns, 5.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)), label="chance")
    for position, index in enumerate(shown):
        name, positives = wrap_text(classes[index], 28), int(truth[:, index].sum())
        if 0 < positives < len(truth):
            false_rate, true_rate, _ = roc_curve(truth[:, index], probabilities[:, index])
            label = f"{name}: {auc(false_rate, true_rate):.3f}"
            axes.plot(false_rate, true_rate, linewidth=1.6, label=label, **line_style(position))
        else:
            reason = "no images" if positives == 0 else "all images"
            axes.plot([], [], label=f"{name}: {reason}, no curve", color="none")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    add_grid(axes)
    axes.legend(
        title="AUC" if len(shown) == 1 else "AUC, one class against the rest",
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=9,
        ncols=columns,
        alignment="left",
        handlelength=2.6,
    )
    return save_figure(figure, path)


def save_reliability(
    path: Path, *, confidence: np.ndarray, correct: np.ndarray, confidence_calibrated: np.ndarray | None = None
) -> Path:
    """Reliability diagram: how often the model is right (N,), against how sure it says it is (N,)."""
    curves = {"as trained": confidence}
    if confidence_calibrated is not None:
        curves["after temperature scaling"] = confidence_calibrated

    figure = new_figure(5.4, 6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    edges = np.linspace(0, 1, BINS + 1)
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle="--", label="perfect calibration")
    for position, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, dtype=float)
        index = np.clip(np.ceil(values * BINS).astype(int) - 1, 0, BINS - 1)
        count = np.bincount(index, minlength=BINS)
        used = count > 0
        accuracy = np.bincount(index, weights=correct, minlength=BINS)[used] / count[used]
        mean = np.bincount(index, weights=values, minlength=BINS)[used] / count[used]
        error = float((count[used] * np.abs(accuracy - mean)).sum() / len(correct))
        style: dict[str, Any] = {"color": COLOURS[position], "linestyle": LINES[position]}
        label = f"{name}: ECE {error:.3f}"
        upper.plot(mean, accuracy, marker="os"[position], markersize=5, label=label, **style)
        lower.stairs(count, edges, linewidth=1.6, **style)
        lower.stairs(count, edges, fill=True, color=COLOURS[position], alpha=0.15)
    upper.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="accuracy of the bin")
    upper.legend(loc="best", frameon=False, fontsize=9)
    lower.set(xlabel="confidence (highest probability)", ylabel="images per bin")
    lower.yaxis.get_major_locator().set_params(integer=True)
    for axes in (upper, lower):
        add_grid(axes)
    return save_figure(figure, path)
