"""Figures of lung masks, saliency maps and pseudo-labels. Every function writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from label_efficient.report.drawing import COLOURS, INK, LINES, MUTED, add_grid, new_figure, save_figure, wrap_text
from label_efficient.report.history_figures import series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREDICTED, REFERENCE = COLOURS[4], COLOURS[5]  # orange and sky blue: both stand out on grey, to all eyes


def save_dice_boxes(path: Path, *, scores: Mapping[str, Sequence[float]]) -> None:
    """Box plot of the Dice of single images by group: quartiles, median written, every image a dot.

    Whiskers reach to the last image within 1.5 times the box's height.

    Args:
        path: PNG file to write.
        scores: the Dice of each image, within [0, 1], by the name of the group.
    """
    if not scores:
        raise ValueError("scores must have one group at least")
    groups = {str(name): np.asarray(values, dtype=float) for name, values in scores.items()}
    for name, values in groups.items():
        if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"scores of {name!r} must be one number an image within [0, 1], got {values}")

    names = [wrap_text(name, 18) for name in groups]
    lines = max(name.count("\n") for name in names) + 2
    figure = new_figure(1.1 + 1.45 * max(len(groups), 2), 3.6 + 0.15 * lines)
    axes = figure.subplots()
    places = np.arange(len(groups), dtype=float)
    boxes = axes.boxplot(
        list(groups.values()),
        positions=places,
        widths=0.5,
        showfliers=False,  # they are among the dots
        patch_artist=True,
        medianprops={"color": INK, "linewidth": 1.8},
        whiskerprops={"color": MUTED},
        capprops={"color": MUTED},
        zorder=3,
    )
    jitter = np.random.default_rng(0)
    for number, (place, values) in enumerate(zip(places, groups.values(), strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        boxes["boxes"][number].set(facecolor=colour, edgecolor=colour, alpha=0.35)
        across = place + jitter.uniform(-0.2, 0.2, len(values))
        axes.scatter(across, values, s=7, color=colour, alpha=0.35, linewidths=0, zorder=2)
        median = float(np.median(values))
        label: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        axes.annotate(f"{median:.3f}", (place + 0.25, median), color=INK, **label)
    axes.set_xticks(places, [f"{name}\n(n = {len(v)})" for name, v in zip(names, groups.values(), strict=True)])
    lowest = min(values.min() for values in groups.values())
    pad = max(0.04 * (1 - lowest), 0.005)
    axes.set(ylim=(lowest - pad, 1 + pad), xlim=(-0.6, len(groups) - 0.25), ylabel="Dice of an image")
    axes.tick_params(axis="x", length=0, labelsize=8.5)
    add_grid(axes)
    axes.grid(axis="x", visible=False)
    save_figure(figure, path)


def save_boundaries(
    path: Path,
    *,
    images: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    captions: Sequence[str],
    columns: int = 4,
) -> None:
    """Images with the outlines of the predicted and of the reference mask.

    Args:
        path: PNG file to write.
        images: ``H x W`` uint8, each of its own size.
        predicted: ``H x W`` bool, an image each; may be empty.
        references: ``H x W`` bool, an image each.
        captions: one text an image; line breaks are kept.
        columns: images in a row.
    """
    from matplotlib.lines import Line2D

    _check_equal(images=images, predicted=predicted, references=references, captions=captions)
    checked = [_check_image(image) for image in images]
    outlines = {"reference": (references, REFERENCE, "-"), "predicted": (predicted, PREDICTED, "--")}
    for number, image in enumerate(checked):
        for name, (masks, *_) in outlines.items():
            mask = np.asarray(masks[number])
            if mask.dtype != bool or mask.shape != image.shape:
                raise ValueError(f"{name} {number} must be bool {image.shape}, got {mask.dtype} {mask.shape}")

    figure, panels = _sheet([[image] for image in checked], captions, columns=columns, width=2.1, above=0.3)
    for number, ([axes], image) in enumerate(zip(panels, checked, strict=True)):
        _show(axes, image, cmap="gray", vmin=0, vmax=255)
        for masks, colour, line in outlines.values():
            mask = np.pad(np.asarray(masks[number]), 1)  # closes outlines at the border of the image
            if mask.any():
                at = [np.arange(-1, size + 1) for size in image.shape]
                axes.contour(at[1], at[0], mask, levels=[0.5], colors=[colour], linewidths=1.3, linestyles=[line])
    handles = [Line2D([], [], color=PREDICTED, linestyle="--"), Line2D([], [], color=REFERENCE)]
    look: dict[str, Any] = {"ncols": 2, "frameon": False, "fontsize": 9, "borderaxespad": 0.2}
    figure.legend(handles, ["predicted", "reference"], loc="upper center", **look)
    save_figure(figure, path)


def save_saliency(
    path: Path, *, images: Sequence[np.ndarray], saliency_maps: Sequence[np.ndarray], captions: Sequence[str]
) -> None:
    """Each image beside its saliency map, which is scaled by its own 99.5th percentile.

    Args:
        path: PNG file to write.
        images: ``H x W`` uint8, each of its own size.
        saliency_maps: ``H x W`` floats, non-negative, an image each.
        captions: one text an image; line breaks are kept.
    """
    _check_equal(images=images, saliency_maps=saliency_maps, captions=captions)
    checked = [_check_image(image) for image in images]
    maps = [np.asarray(saliency_map) for saliency_map in saliency_maps]
    for number, (image, saliency_map) in enumerate(zip(checked, maps, strict=True)):
        if not np.issubdtype(saliency_map.dtype, np.floating) or saliency_map.shape != image.shape:
            got = f"{saliency_map.dtype} {saliency_map.shape}"
            raise ValueError(f"saliency map {number} must be floats {image.shape}, got {got}")
        if not (np.isfinite(saliency_map) & (saliency_map >= 0)).all():
            raise ValueError(f"saliency map {number} must be finite and non-negative")

    figure, panels = _sheet(list(zip(checked, maps, strict=True)), captions, columns=3, width=1.6, below=0.5)
    for (left, right), image, saliency_map in zip(panels, checked, maps, strict=True):
        _show(left, image, cmap="gray", vmin=0, vmax=255)
        # A map of few bright points has a percentile of 0; one of nothing is drawn black.
        highest = float(np.percentile(saliency_map, 99.5)) or float(saliency_map.max()) or 1.0
        shown = _show(right, np.clip(saliency_map / highest, 0, 1), cmap="magma", vmin=0, vmax=1)
    width, height = figure.get_size_inches()
    place = figure.add_axes((0.5 - 1.3 / width, 0.42 / height, 2.6 / width, 0.08 / height))
    bar = figure.colorbar(shown, cax=place, orientation="horizontal")
    bar.set_label("saliency / its 99.5th percentile in the image", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    save_figure(figure, path)


def save_pseudo_labels(path: Path, *, history: Sequence[Mapping[str, Any]]) -> None:
    """What the unlabelled images contributed over the epochs.

    Args:
        path: PNG file to write.
        history: rows of ``history.csv`` with ``epoch`` and any of ``train_pseudo_label_share`` (of the unlabelled
            images, above the confidence threshold), ``train_pseudo_label_accuracy`` (of those, where labels are
            known), ``train_pseudo_label_loss`` and ``train_kl_loss``; numbers, text, empty or absent.
    """
    from matplotlib.ticker import MaxNLocator

    shares = {
        "train_pseudo_label_share": "images above the threshold",
        "train_pseudo_label_accuracy": "of these, labelled right",
    }
    losses = {
        "train_pseudo_label_loss": "pseudo-labels, cross-entropy",
        "train_kl_loss": "masks, KL divergence",
    }
    epochs = series(history, "epoch")
    if not np.isfinite(epochs).all():
        raise ValueError("history needs an epoch in every row")
    known = {key: values for key in (*shares, *losses) if np.isfinite(values := series(history, key)).any()}
    if not known:
        raise ValueError(f"history has no values of any of {', '.join((*shares, *losses))}")
    for key in shares:
        if key in known and ((known[key] < 0) | (known[key] > 1)).any():
            raise ValueError(f"history: {key} must be within [0, 1]")

    drawn = [names for names in (shares, losses) if any(key in known for key in names)]
    figure = new_figure(4.6 * len(drawn), 3.9)
    for axes, names in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        present = [key for key in names if key in known]
        for key in present:
            style = list(names).index(key)  # the same look whether the other is there or not
            finite = np.isfinite(known[key])
            look = {"color": COLOURS[style], "linestyle": LINES[style], "markersize": 4}
            marker = "os"[style] if finite.sum() <= 12 else ""
            axes.plot(epochs[finite], known[key][finite], label=names[key], marker=marker, **look)
        if names is shares:
            axes.set(title="Pseudo-labels", ylabel="share (1 is all)", ylim=(-0.03, 1.03))
        else:
            values = np.concatenate([known[key][np.isfinite(known[key])] for key in present])
            if values.min() > 0 and values.max() > 50 * values.min():
                axes.set_yscale("log")
            axes.set(title="Losses of the unlabelled images", ylabel="loss (nats), before its weight")
        first, last = epochs.min(), epochs.max()
        pad = 0.02 * (last - first) or 0.5
        axes.set(xlabel="epoch", xlim=(first - pad, last + pad))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        add_grid(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)


def _sheet(
    cells: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str],
    *,
    columns: int,
    width: float = 1.75,
    above: float = 0.0,
    below: float = 0.0,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of cells in rows of `columns`, in exact places: pictures side by side over one caption.

    Args:
        cells: the pictures of each cell, ``H x W``; the same number in every cell.
        captions: one text a cell.
        columns: cells in a row.
        width: inches of one picture.
        above: inches left free at the top.
        below: inches left free at the bottom.

    Returns:
        The figure, and an empty panel for every picture of every cell.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(cells))
    across, gap, line = len(cells[0]), 0.14, 0.145
    cell_width = across * width + (across - 1) * 0.04
    ratio = max(picture.shape[0] / picture.shape[1] for cell in cells for picture in cell)
    height = width * float(np.clip(ratio, 0.3, 1.5))
    texts = [wrap_text(caption, int(15 * cell_width)) for caption in captions]
    rows = [texts[start : start + columns] for start in range(0, len(texts), columns)]
    space = [line * max(text.count("\n") + 1 for text in row) + 0.1 for row in rows]
    total_width = columns * (cell_width + gap) + gap
    total_height = above + len(rows) * (height + gap) + sum(space) + below

    figure = new_figure(total_width, total_height, constrained=False)
    panels: list[list[Axes]] = []
    for number, text in enumerate(texts):
        row, column = divmod(number, columns)
        left = gap + column * (cell_width + gap)
        bottom = total_height - above - (row + 1) * (height + gap) - sum(space[:row])
        panels.append([])
        for place in range(across):
            start = (left + place * (width + 0.04)) / total_width
            axes = figure.add_axes((start, bottom / total_height, width / total_width, height / total_height))
            axes.set_axis_off()
            axes.set_anchor("S")
            panels[-1].append(axes)
        middle = (left + cell_width / 2) / total_width, (bottom - 0.05) / total_height
        figure.text(*middle, text, ha="center", va="top", fontsize=7.5, linespacing=1.15)
    return figure, panels


def _show(axes: Axes, image: np.ndarray, **look: Any) -> Any:
    """Draw one picture; small ones are enlarged without blur."""
    return axes.imshow(image, interpolation="nearest" if max(image.shape) < 200 else "antialiased", **look)


def _check_equal(**given: Sequence[Any]) -> None:
    """Refuse sequences of different lengths, or empty ones."""
    counts = {name: len(values) for name, values in given.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"need one image at least, and one of each an image: {counts}")


def _check_image(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"an image must be uint8 height x width, got {image.dtype} {image.shape}")
    return image
