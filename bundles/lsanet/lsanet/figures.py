"""Figures of a run, drawn without a display: every function writes one PNG."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
# Okabe and Ito's colours without yellow, which is lost on white; the line style tells repeats apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
INK, MUTED, FAINT = "#1C2330", "#6B7480", "#A9B1BC"

History = Sequence[Mapping[str, Any]]


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

    names = [_wrap(name, 24) for name in classes]
    digits = max(len(str(counts.max(initial=0))), 2)
    cell = float(np.clip(0.13 * digits, 0.5 if num_classes < 20 else 0.32, 0.9))
    side = max(cell * num_classes, 2.0)
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    margin = 0.085 * longest
    figure = _figure(side + margin + 2.1, side + (margin if num_classes > 2 else 0.3) + 0.9)
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
    _save(figure, path)


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
    figure = _figure(5.2 + 3.2 * columns, 5.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)), label="chance")
    for position, index in enumerate(shown):
        name, positives = _wrap(classes[index], 28), int(truth[:, index].sum())
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
    _grid(axes)
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
    _save(figure, path)


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

    figure = _figure(5.4, 6.2)
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
        _grid(axes)
    _save(figure, path)


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
    figure = _figure(4.4 * sum(widths), 3.9)
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
    _save(figure, path)


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
    figure = _figure(3.9 * num_panels, 3.9)
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
    _save(figure, path)


def save_contact_sheet(path: Path, *, images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 6) -> None:
    """Images side by side, small ones enlarged without blur, each with its caption below.

    Args:
        path: PNG file to write.
        images: ``(H, W, 3)`` uint8 arrays of any size.
        captions: one text an image; line breaks are kept.
        columns: images in a row.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"need one caption an image and one image at least: {len(images)}, {len(captions)}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    images = [_check_image(image) for image in images]
    columns = min(columns, len(images))
    num_rows = math.ceil(len(images) / columns)
    width, gap, line = 1.75, 0.12, 0.145
    height = width * float(np.clip(max(image.shape[0] / image.shape[1] for image in images), 0.3, 1.5))
    texts = [_wrap(caption, 27) for caption in captions]
    rows = [texts[start : start + columns] for start in range(0, len(texts), columns)]
    below = [line * max(text.count("\n") + 1 for text in row) + 0.08 for row in rows]

    total = (columns * (width + gap) + gap, num_rows * (height + gap) + sum(below) + gap)
    figure = _figure(*total, constrained=False)  # the cells have exact places
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(number, columns)
        left = gap + column * (width + gap)
        bottom = total[1] - (row + 1) * (height + gap) - sum(below[:row])
        box = (left / total[0], bottom / total[1], width / total[0], height / total[1])
        axes = figure.add_axes(box)
        axes.imshow(_shrink(image, round(width * DPI), round(height * DPI)), interpolation="nearest")
        axes.set_axis_off()
        axes.set_anchor("S")
        middle = (left + width / 2) / total[0], (bottom - 0.05) / total[1]
        figure.text(*middle, text, ha="center", va="top", fontsize=7.5, linespacing=1.15)
    _save(figure, path)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image under a heat map; where the heat is zero the image stays as it was.

    Args:
        image: ``(H, W, 3)`` uint8.
        heat: ``(h, w)`` within [0, 1], resized to the image.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    from matplotlib import colormaps
    from PIL import Image

    image, heat = _check_image(image), np.asarray(heat, dtype=np.float32)
    if heat.ndim != 2 or not heat.size:
        raise ValueError(f"heat must be height x width, got {heat.shape}")
    if not ((heat >= -1e-4) & (heat <= 1 + 1e-4)).all():
        raise ValueError("heat must lie within [0, 1]")
    size = (image.shape[1], image.shape[0])
    heat = np.clip(np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)), 0, 1)
    colour = 255 * colormaps["viridis"](heat)[..., :3]
    opacity = (0.7 * heat**0.75)[..., None]
    return np.round((1 - opacity) * image + opacity * colour).astype(np.uint8)


def save_overlay(path: Path, *, image: np.ndarray, heat: np.ndarray) -> None:
    """Write `overlay` at the size of the image, pixel for pixel."""
    from PIL import Image

    blended = Image.fromarray(overlay(image, heat))
    with _whole_file(path) as temporary:
        blended.save(temporary, format="PNG", dpi=(DPI, DPI))


def _figure(width: float, height: float, constrained: bool = True) -> Figure:
    """A figure that belongs to no window and to no global list."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06) if constrained else None
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it on success and removed on failure."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"figures are PNG files, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _save(figure: Figure, path: Path) -> None:
    with _whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.08)


def _wrap(text: object, width: int) -> str:
    """The text in lines of at most `width` characters, with nothing in it that matplotlib interprets."""
    plain = str(text).encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")
    lines = [textwrap.wrap(part, width) or [""] for part in plain.splitlines()]
    wrapped = "\n".join(line for part in lines for line in part)
    return f" {wrapped}" if wrapped.startswith("_") else wrapped  # a legend drops leading underscores


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
    _grid(axes)


def _grid(axes: Axes) -> None:
    axes.grid(color="#E4E8ED", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(axes: Axes, columns: int, figure: Figure | None = None) -> None:
    """Legend under the axes, where it covers no curve; under the whole figure if one is given."""
    handles, labels = axes.get_legend_handles_labels()
    look: dict[str, Any] = {"frameon": False, "fontsize": 9}
    if figure is not None and handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), **look)
    elif handles:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, **look)


def _check_image(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"an image must be uint8 height x width x 3, got {image.dtype} {image.shape}")
    return image


def _shrink(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The image smoothed down to fit; untouched if it already does."""
    from PIL import Image

    if image.shape[1] <= width and image.shape[0] <= height:
        return image
    smaller = Image.fromarray(image)
    smaller.thumbnail((width, height), Image.Resampling.LANCZOS)
    return np.asarray(smaller)
