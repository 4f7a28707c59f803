"""Figures of lung masks and saliency maps. Every function writes one PNG and returns its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from label_efficient.report.drawing import COLOURS, INK, MUTED, add_grid, new_figure, save_figure, wrap_text
from label_efficient.report.pictures import new_sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREDICTED, REFERENCE = COLOURS[4], COLOURS[5]  # orange and sky blue: both stand out on grey, to all eyes


def save_dice_boxes(path: Path, *, scores: Mapping[str, Sequence[float]]) -> Path:
    """Box plot of the Dice of single images by group: quartiles, median written, every image a dot.

    Whiskers reach to the last image within 1.5 times the box's height.
    """
    groups = {name: np.asarray(values) for name, values in scores.items()}
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
    return save_figure(figure, path)


def save_boundaries(
    path: Path,
    *,
    images: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    references: Sequence[np.ndarray],
    captions: Sequence[str],
) -> Path:
    """Images, uint8 H x W each of its own size, with the outlines of the predicted and reference mask, bool H x W."""
    from matplotlib.lines import Line2D

    figure, panels = new_sheet([[image] for image in images], captions, columns=4, width=2.1, above=0.3)
    for [axes], image, reference, found in zip(panels, images, references, predicted, strict=True):
        _show(axes, image, cmap="gray", vmin=0, vmax=255)
        for own, colour, line in ((reference, REFERENCE, "-"), (found, PREDICTED, "--")):
            mask = np.pad(own, 1)  # closes outlines at the border of the image
            if mask.any():
                at = [np.arange(-1, size + 1) for size in image.shape]
                axes.contour(at[1], at[0], mask, levels=[0.5], colors=[colour], linewidths=1.3, linestyles=[line])
    handles = [Line2D([], [], color=PREDICTED, linestyle="--"), Line2D([], [], color=REFERENCE)]
    look: dict[str, Any] = {"ncols": 2, "frameon": False, "fontsize": 9, "borderaxespad": 0.2}
    figure.legend(handles, ["predicted", "reference"], loc="upper center", **look)
    return save_figure(figure, path)


def save_saliency(
    path: Path, *, images: Sequence[np.ndarray], saliency_maps: Sequence[np.ndarray], captions: Sequence[str]
) -> Path:
    """Each image, uint8 H x W, beside its non-negative saliency map, which is scaled by its own 99.5th percentile."""
    pairs = list(zip(images, saliency_maps, strict=True))
    figure, panels = new_sheet(pairs, captions, columns=3, width=1.6, below=0.5)
    for (left, right), (image, saliency_map) in zip(panels, pairs, strict=True):
        _show(left, image, cmap="gray", vmin=0, vmax=255)
        # A map of few bright points has a percentile of 0; one of nothing is drawn black.
        highest = float(np.percentile(saliency_map, 99.5)) or float(saliency_map.max()) or 1.0
        shown = _show(right, np.clip(saliency_map / highest, 0, 1), cmap="magma", vmin=0, vmax=1)
    width, height = figure.get_size_inches()
    place = figure.add_axes((0.5 - 1.3 / width, 0.42 / height, 2.6 / width, 0.08 / height))
    bar = figure.colorbar(shown, cax=place, orientation="horizontal")
    bar.set_label("saliency / its 99.5th percentile in the image", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return save_figure(figure, path)


def _show(axes: Axes, image: np.ndarray, **look: Any) -> Any:
    """Draw one picture; small ones are enlarged without blur."""
    return axes.imshow(image, interpolation="nearest" if max(image.shape) < 200 else "antialiased", **look)
