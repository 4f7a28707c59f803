"""Crops against a slow reference per pixel, against torch, and on a real picture."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from gated_attention import crops as module
from gated_attention.crops import cut_instances

# Left, top and side; the images are 40 x 60, 90 x 13, 3 x 5 and 1 x 1 (height x width), the crops 7 x 7.
BOXES = {
    "inside": (3.0, 2.0, 7.0),
    "fractional": (4.37, 5.81, 9.43),
    "smaller than the crop": (2.25, 1.5, 1.75),
    "less than a pixel": (1.2, 0.7, 0.3),
    "at the border": (0.0, 0.0, 13.0),
    "across the border": (-4.3, -2.6, 12.1),
    "around the image": (-10.0, -9.0, 80.0),
    "beyond it": (200.0, 300.0, 10.0),
    "more than twice the crop": (-0.5, -1.0, 14.7),
    "twice the crop": (1.3, 2.1, 14.0),
    "more than four times the crop": (-3.1, 0.4, 33.3),
}


def pictures(seed=0, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(40, 60), (90, 13), (3, 5), (1, 1)]
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8).to(dtype) for size in sizes]


def edges(left, top, side):
    return [left, top, left + side, top + side]


def sample(image, x, y):
    """Value between the four pixels around a place, or None outside the image; float64."""
    height, width = image.shape[1:]
    if not (0 <= x <= width and 0 <= y <= height):
        return None
    x, y = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    upper = image[:, top, left] * (left + 1 - x) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (left + 1 - x) + image[:, bottom, right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


def reference(image, box, size):
    """One crop, pixel by pixel, and what of it is inside the image."""
    image, (left, top, right, bottom) = image.numpy().astype(np.float64), box.tolist()
    count = max(math.ceil((right - left) / (2 * size)), 1)
    crop, inside = np.zeros((3, size, size)), np.zeros((1, size, size))
    for row, column in np.ndindex(size, size):
        found = []
        for i, j in np.ndindex(count, count):
            x = left + (column + (j + 0.5) / count) * (right - left) / size
            y = top + (row + (i + 0.5) / count) * (bottom - top) / size
            found.append(sample(image, x, y))
        found = [value for value in found if value is not None]
        if found:
            crop[:, row, column], inside[:, row, column] = np.mean(found, axis=0), 1
    return crop, inside


@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equals_the_slow_reference(dtype, exporting, monkeypatch):
    monkeypatch.setattr(module, "is_exporting", lambda: exporting)
    images = pictures(dtype=dtype)
    # In every image the boxes in another order: boxes of unlike sizes lie beside each other.
    kinds = [list(np.roll(list(BOXES), image)) for image in range(len(images))]
    boxes = torch.tensor([[edges(*BOXES[kind]) for kind in row] for row in kinds])
    crops, inside = cut_instances(images, boxes, 7)
    assert crops.shape == (4, len(BOXES), 3, 7, 7)
    assert inside.shape == (4, len(BOXES), 1, 7, 7)
    assert crops.dtype == inside.dtype == torch.float32
    for image in range(4):
        for k, kind in enumerate(kinds[image]):
            # What the boxes are in float32 is what both see.
            expected, reached = reference(images[image], boxes[image, k].double(), 7)
            np.testing.assert_allclose(crops[image, k], expected, atol=255e-5, err_msg=f"{kind}, image {image}")
            np.testing.assert_array_equal(inside[image, k], reached, err_msg=f"{kind}, image {image}")
    assert 0 < inside.mean() < 1


def test_image_and_box_are_alone_what_they_are_in_a_batch():
    images = pictures()
    boxes = torch.tensor([[edges(*box) for box in BOXES.values()]]).repeat(4, 1, 1)
    crops, inside = cut_instances(images, boxes, 7)
    for image in range(4):
        for k in range(len(BOXES)):
            alone = cut_instances(images[image : image + 1], boxes[image : image + 1, k : k + 1], 7)
            torch.testing.assert_close(alone[0][0, 0], crops[image, k], rtol=1e-6, atol=1e-4)
            assert torch.equal(alone[1][0, 0], inside[image, k])


def test_layout_in_memory_and_scripting_change_nothing():
    images = pictures()
    boxes = torch.tensor([[edges(*BOXES["fractional"]), edges(*BOXES["around the image"])]]).repeat(4, 1, 1)
    expected = cut_instances(images, boxes, 5)
    # As a reader gives them: rows of pixels of three values.
    others = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in images]
    for found in (cut_instances(others, boxes, 5), torch.jit.script(cut_instances)(images, boxes, 5)):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("size", [24, 36, 50, 97])
def test_whole_image_enlarged_or_halved_equals_interpolate(size):
    image = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    crops, _ = cut_instances([image], torch.tensor([[[0.0, 0.0, 48.0, 48.0]]]), size)
    expected = F.interpolate(image[None].float(), [size, size], mode="bilinear", align_corners=False)
    torch.testing.assert_close(crops[0], expected, rtol=0, atol=255e-5)


@pytest.mark.parametrize("factor", [1, 2, 4, 6])
def test_a_real_picture_keeps_its_pixels_and_made_smaller_is_the_mean_of_them_all(real_data, factor):
    path = sorted((real_data / "microscopy" / "aspergillus_512x384").glob("*/*.jpg"))[0]
    picture = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    crops, _ = cut_instances([picture], torch.tensor([[edges(31, 42, 40.0 * factor)]]), 40)
    part = picture[:, 42 : 42 + 40 * factor, 31 : 31 + 40 * factor].float()
    torch.testing.assert_close(crops[0, 0], F.avg_pool2d(part, factor), rtol=0, atol=255e-5)


def test_a_place_far_into_a_large_image_keeps_its_digits():
    # In single precision a place at 20000 is known to 0.002 of a pixel, half a grey value beside a strong edge.
    image = (torch.arange(20000) % 2 * 255).to(torch.uint8).expand(3, 4, 20000)
    box = torch.tensor([[[19990.25, 0.0, 19993.5, 3.25]]])
    crops, _ = cut_instances([image], box, 4)
    expected, _ = reference(image, box[0, 0].double(), 4)
    np.testing.assert_allclose(crops[0, 0], expected, atol=255e-5)
