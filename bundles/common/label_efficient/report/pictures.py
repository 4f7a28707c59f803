"""Pictures of images: contact sheets, and heat maps laid over an image."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from label_efficient.report.drawing import DPI, new_figure, save_figure, whole_file, wrap_text


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
    texts = [wrap_text(caption, 27) for caption in captions]
    rows = [texts[start : start + columns] for start in range(0, len(texts), columns)]
    below = [line * max(text.count("\n") + 1 for text in row) + 0.08 for row in rows]

    total = (columns * (width + gap) + gap, num_rows * (height + gap) + sum(below) + gap)
    figure = new_figure(*total, constrained=False)  # the cells have exact places
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
    save_figure(figure, path)


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
    with whole_file(path) as temporary:
        blended.save(temporary, format="PNG", dpi=(DPI, DPI))


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
