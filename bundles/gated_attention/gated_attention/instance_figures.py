"""Pictures of what the network looked at: attention over the image, and the instances as it saw them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from label_efficient.files import write_whole
from label_efficient.report.pictures import overlay

from .crops import cut_instances
from .instances import attention_mask, normalised_attention
from .network import GatedAttentionNet

MOST_PIXELS, FEWEST_PIXELS = 1024, 384  # of the longer side of a picture that is drawn
_BOX, _EDGE, _TEXT, _CASING = (255, 112, 32), (255, 255, 255), (28, 35, 48), (0, 0, 0)
_GAP = 8


class InstancePictures:
    """Draws what a network looked at, with its own threshold, sizes and normalisation."""

    def __init__(self, network: GatedAttentionNet) -> None:
        self.image_size = network.image_size
        self.instance_size = network.instance_size
        self.threshold = network.threshold
        self.mean = network.get_buffer("mean").cpu()

    def draw(
        self, image: torch.Tensor, found: Mapping[str, torch.Tensor], most_pixels: int = MOST_PIXELS
    ) -> Image.Image:
        """The image under its attention, with the mask's outline and the boxes by rank; beside it the instances.

        The image is as stored, uint8 3 x H x W; `found` has `attention_map` (h x w) and, unless it is of the global
        branch alone, `instance_boxes` (K x 4) and `instance_scores` (K,); all on the CPU. Pictures whose longer side is
        above `most_pixels` are drawn smaller, very small ones larger.
        """
        picture = _resize(Image.fromarray(image.permute(1, 2, 0).numpy()), most_pixels)
        maps = found["attention_map"][None]
        heat = normalised_attention(maps, self.image_size)[0].numpy()
        mask = attention_mask(maps, self.threshold, self.image_size)[0].numpy()
        shown = Image.fromarray(_outlined(overlay(np.asarray(picture), heat), mask))
        if "instance_boxes" not in found:
            return shown
        boxes, scores = found["instance_boxes"], found["instance_scores"]
        scale = shown.width / image.shape[2], shown.height / image.shape[1]
        _draw_boxes(shown, boxes.numpy() * np.array([*scale, *scale]))
        return _beside(shown, self._instances(image, boxes), scores.tolist(), round(most_pixels / 4.5))

    def _instances(self, image: torch.Tensor, boxes: torch.Tensor) -> list[Image.Image]:
        """The crops; where they reach beyond the image, the mean, which is what the network has there."""
        crops, inside = cut_instances([image], boxes[None], self.instance_size)
        pixels = (crops + self.mean * (1 - inside)).round().to(torch.uint8)[0].permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(crop) for crop in pixels]


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG whole or not at all."""
    write_whole(path, lambda file: picture.save(file, format="PNG", compress_level=3))


def small_picture(image: np.ndarray, side: int) -> np.ndarray:
    """A picture uint8 H x W x 3 at most `side` pixels a side."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _resize(picture: Image.Image, most_pixels: int) -> Image.Image:
    longer = max(picture.size)
    if longer >= FEWEST_PIXELS:
        picture.thumbnail((most_pixels, most_pixels), Image.Resampling.LANCZOS)
        return picture
    factor = -(-FEWEST_PIXELS // longer)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The border of the mask, stretched over the image, just inside of it."""
    height, width = image.shape[:2]
    large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    thickness = max(round(max(large.shape) / 400), 1)
    image[large & ~ndimage.binary_erosion(large, iterations=thickness)] = _EDGE
    return image


def _draw_boxes(picture: Image.Image, boxes: np.ndarray) -> None:
    """Rectangles with their rank, the first on top."""
    draw = ImageDraw.Draw(picture)
    line = max(round(max(picture.size) / 340), 2)
    font = ImageFont.load_default(max(7 * line, 14))
    for rank, (left, top, right, bottom) in reversed(list(enumerate(boxes.round().tolist(), start=1))):
        # Box edges lie between pixels; the last pixel is the one before the right and lower edge.
        corners = (left, top, max(right - 1, left), max(bottom - 1, top))
        for extra, colour in ((1, _CASING), (0, _BOX)):
            outer = (corners[0] - extra, corners[1] - extra, corners[2] + extra, corners[3] + extra)
            draw.rectangle(outer, outline=colour, width=line + 2 * extra)
        place = [max(left, 0) + line, max(top, 0) + line]
        text = draw.textbbox((place[0] + line, place[1]), str(rank), font=font)
        draw.rectangle((*place, text[2] + line, text[3] + line), fill=_BOX)
        draw.text((place[0] + line, place[1]), str(rank), fill=_CASING, font=font)


def _beside(picture: Image.Image, crops: Sequence[Image.Image], scores: Sequence[float], side: int) -> Image.Image:
    """The picture and right of it the crops in a row, each with its rank and its share of the attention above."""
    size_of_text = max(side // 12, 12)
    font = ImageFont.load_default(size_of_text)
    head = round(1.5 * size_of_text)
    size = (picture.width + len(crops) * (side + _GAP), max(picture.height, head + side))
    canvas = Image.new("RGB", size, "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, (crop, score) in enumerate(zip(crops, scores, strict=True)):
        left = picture.width + _GAP + number * (side + _GAP)
        draw.text((left, head - 4), f"{number + 1}: {score:.0%}", fill=_TEXT, font=font, anchor="ls")
        way = Image.Resampling.LANCZOS if 3 * crop.width > side else Image.Resampling.NEAREST
        canvas.paste(crop.resize((side, side), way), (left, head))
    return canvas
