"""Figures of predictions: confusion matrix, ROC, reliability. Every function writes one PNG."""

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
    new_figure,
    save_figure,
    wrap_text,
)


def save_confusion_matrix(path: Path, *, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Confusion matrix: colour is the share of a true class, numbers are images.

    Args:
        path: PNG file to write.
        counts: ``(K, K)`` integers, rows are true classes.
        classes: the K names.
    """
    counts = np.asarray(counts)
    num_classes = len(classes)
    if counts.shape != (num_classes, num_classes):
        raise ValueError(f"counts must be {num_classes} x {num_classes}, a row a class, got {counts.shape}")
    if not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise ValueError("counts must be non-negative integers")
    totals = counts.sum(axis=1)
    share = counts / np.maximum(totals, 1)[:, None]

    names = [wrap_text(name, 24) for name in classes]
    digits = max(len(str(counts.max(initial=0))), 2)
    cell = float(np.clip(0.13 * digits, 0.5 if num_classes < 20 else 0.32, 0.9))
    side = max(cell * num_classes, 2.0)
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    margin = 0.085 * longest
    figure = new_figure(side + margin + 2.1, side + (margin if num_classes > 2 else 0.3) + 0.9)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks = range(num_classes)
    axes.set_xticks(ticks, names, fontsize=9)
    if num_classes > 2:
        axes.tick_params(axis="x", rotation=90)
    axes.set_yticks(ticks, [f"{name} ({total})" for name, total in zip(names, totals, strict=True)], fontsize=9)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (images)")
    axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#DDE2E9", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    size = min(10.0, 72 * side / max(num_classes, 1) / (0.75 * digits))
    for row in ticks:
        for column in ticks:
            ink = "white" if share[row, column] > 0.55 else INK if counts[row, column] else FAINT
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=24)
    bar.set_label("share of the true class")
    save_figure(figure, path)


def save_roc(path: Path, *, targets: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> None:
    """One-vs-rest ROC curve of every class; two exclusive classes give the second one's curve.

    Args:
        path: PNG file to write.
        targets: ``(N,)`` class indices, or ``(N, K)`` zeros and ones for several labels an image.
        probabilities: ``(N, K)``.
        classes: the K names.
    """
    from sklearn.metrics import auc, roc_curve

    targets, probabilities = np.asarray(targets), np.asarray(probabilities, dtype=float)
    num_classes = len(classes)
    if probabilities.ndim != 2 or probabilities.shape[1] != num_classes:
        raise ValueError(f"probabilities must be N x {num_classes}, got {probabilities.shape}")
    if targets.shape not in ((len(probabilities),), probabilities.shape):
        raise ValueError(f"targets must be (N,) or (N, K) for {probabilities.shape}, got {targets.shape}")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    if targets.ndim == 2:
        truth, shown = targets, list(range(num_classes))
        if not np.isin(truth, (0, 1)).all():
            raise ValueError("targets of shape (N, K) must be zeros and ones")
    else:
        if not np.isin(targets, np.arange(num_classes)).all():
            raise ValueError(f"targets must be class indices 0 to {num_classes - 1}")
        truth = targets[:, None] == np.arange(num_classes)
        shown = [1] if num_classes == 2 else list(range(num_classes))

    columns = 1 if len(shown) <= 16 else 2
    figure = new_figure(5.2 + 3.2 * columns, 5.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)), label="chance")
    for position, index in enumerate(shown):
        name, positives = wrap_text(classes[index], 28), int(truth[:, index].sum())
        style: dict[str, Any] = {
            "color": COLOURS[position % len(COLOURS)],
            "linestyle": LINES[position // len(COLOURS) % len(LINES)],
        }
        if 0 < positives < len(truth):
            false_rate, true_rate, _ = roc_curve(truth[:, index], probabilities[:, index])
            style["label"] = f"{name}: {auc(false_rate, true_rate):.3f}"
            axes.plot(false_rate, true_rate, linewidth=1.6, **style)
        else:
            reason = "no images" if positives == 0 else "all images"
            axes.plot([], [], label=f"{name}: {reason}, no curve", color="none")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
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
    save_figure(figure, path)


def save_reliability(
    path: Path,
    *,
    confidence: np.ndarray,
    correct: np.ndarray,
    confidence_calibrated: np.ndarray | None = None,
    bins: int = 15,
) -> None:
    """Reliability diagram: how often the model is right, against how sure it says it is.

    Args:
        path: PNG file to write.
        confidence: ``(N,)`` highest probabilities.
        correct: ``(N,)`` whether the prediction was right.
        confidence_calibrated: ``(N,)`` the same after temperature scaling, or None.
        bins: number of bins of equal width.
    """
    correct = np.asarray(correct)
    if correct.ndim != 1 or not len(correct):
        raise ValueError(f"correct must be (N,) with at least one image, got {correct.shape}")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("correct must be true or false")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    curves = {"as trained": confidence}
    if confidence_calibrated is not None:
        curves["after temperature scaling"] = confidence_calibrated

    figure = new_figure(5.4, 6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    edges = np.linspace(0, 1, bins + 1)
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle="--", label="perfect calibration")
    for position, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, dtype=float)
        if values.shape != correct.shape or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"confidence must be {correct.shape} within [0, 1], got {values.shape} ({name})")
        index = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
        count = np.bincount(index, minlength=bins)
        used = count > 0
        accuracy = np.bincount(index, weights=correct, minlength=bins)[used] / count[used]
        mean = np.bincount(index, weights=values, minlength=bins)[used] / count[used]
        error = float((count[used] * np.abs(accuracy - mean)).sum() / len(correct))
        style: dict[str, Any] = {"color": COLOURS[position], "linestyle": LINES[position]}
        marker = "os"[position]
        upper.plot(mean, accuracy, marker=marker, markersize=5, label=f"{name}: ECE {error:.3f}", **style)
        lower.stairs(count, edges, linewidth=1.6, **style)
        lower.stairs(count, edges, fill=True, color=COLOURS[position], alpha=0.15)
    upper.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="accuracy of the bin")
    upper.legend(loc="best", frameon=False, fontsize=9)
    lower.set(xlabel="confidence (highest probability)", ylabel="images per bin")
    lower.yaxis.get_major_locator().set_params(integer=True)
    for axes in (upper, lower):
        add_grid(axes)
    save_figure(figure, path)
