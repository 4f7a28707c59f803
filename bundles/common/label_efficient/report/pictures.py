"""Pictures of images: contact sheets, and heat maps laid over an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from label_efficient.files import write_whole
from label_efficient.report.drawing import DPI, new_figure, save_figure, wrap_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_contact_sheet(path: Path, *, images: Sequence[np.ndarray], captions: Sequence[str]) -> Path:
    """Images ``(H, W, 3)`` uint8 side by side, small ones enlarged without blur, each over its caption."""
    figure, panels = new_sheet([[image] for image in images], captions, columns=6)
    for [axes], image in zip(panels, images, strict=True):
        smaller = Image.fromarray(image)
        smaller.thumbnail((round(axes.bbox.width), round(axes.bbox.height)), Image.Resampling.LANCZOS)
        axes.imshow(np.asarray(smaller), interpolation="nearest")
    return save_figure(figure, path)


def new_sheet(
    cells: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str],
    *,
    columns: int,
    width: float = 1.75,
    above: float = 0.0,
    below: float = 0.0,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of cells in rows of `columns`, in exact places: pictures side by side over one caption.

    Every cell has as many pictures, H x W or H x W x 3. A picture is `width` inches wide; `above` and `below` are
    inches left free.

    Returns:
        The figure, and an empty panel for every picture of every cell.
    """
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


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image, uint8 H x W x 3, under a heat map h x w in 0..1; where the heat is zero it stays as it was."""
    from matplotlib import colormaps

    size = (image.shape[1], image.shape[0])
    resized = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    blended = np.empty_like(image)
    for top in range(0, len(image), 64):  # at once, the colours of a large image would take thirty times its memory
        rows = slice(top, top + 64)
        part = np.clip(resized[rows], 0, 1)
        colour, opacity = 255 * colormaps["viridis"](part)[..., :3], (0.7 * part**0.75)[..., None]
        blended[rows] = np.round((1 - opacity) * image[rows] + opacity * colour)
    return blended


def save_overlay(path: Path, *, image: np.ndarray, heat: np.ndarray) -> None:
    """Write `overlay` at the size of the image, pixel for pixel."""
    blended = Image.fromarray(overlay(image, heat))
    write_whole(path, lambda file: blended.save(file, format="PNG", dpi=(DPI, DPI)))
