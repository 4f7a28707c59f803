"""What the gated_attention bundle draws of its attention and its instances: everything where it is in the image."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gated_attention.crops import cut_instances
from gated_attention.instance_figures import InstancePictures
from gated_attention.instances import attention_mask
from gated_attention.shipped import ShippedGatedAttention

ORANGE = (255, 112, 32)


def _network(instance_size: int = 32) -> ShippedGatedAttention:
    return ShippedGatedAttention(
        num_classes=2, instance_backbone="resnet18", image_size=64, num_instances=3, instance_size=instance_size,
        mean=[0.5, 0.4, 0.6], std=[0.5, 0.4, 0.3],
    )  # fmt: skip


def _near(picture: Any, place: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    return np.abs(np.asarray(picture.getpixel(place), dtype=int) - colour).max() <= 3


def test_overlay_shows_mask_boxes_and_instances_where_they_are():
    network = _network()
    pictures = InstancePictures(network)
    array = np.zeros((400, 600, 3), np.uint8)
    array[100:200, 300:400] = 240, 20, 30
    attention = torch.zeros(4, 6)
    attention[1, 3] = 1.0
    boxes = torch.tensor([[300.0, 100, 400, 200], [-40.0, 300, 60, 400], [500.0, 0, 600, 100]])
    scores = torch.tensor([0.9, 0.07, 0.03])
    image = torch.from_numpy(array).permute(2, 0, 1)
    found = {"attention_map": attention, "instance_boxes": boxes, "instance_scores": scores}
    drawn = pictures.draw(image, found)
    tile = round(1024 / 4.5)
    assert drawn.size == (600 + 3 * (tile + 8), 400)
    for x, y in ((300, 150), (399, 150), (350, 199), (59, 350), (599, 50)):
        assert _near(drawn, (x, y), ORANGE), (x, y)
    for x, y in ((290, 150), (409, 150), (350, 215), (75, 350), (480, 50)):
        assert not _near(drawn, (x, y), ORANGE), (x, y)
    # The instances: red; left of the image the mean of the network; black.
    mean = tuple(round(255 * m) for m in (0.5, 0.4, 0.6))
    for number, (left, right) in enumerate([((240, 20, 30),) * 2, (mean, (0, 0, 0)), ((0, 0, 0),) * 2]):
        start = 608 + number * (tile + 8)
        assert _near(drawn, (start + tile // 8, 200), left) and _near(drawn, (start + tile * 7 // 8, 200), right)
    alone = np.asarray(pictures.draw(image, {"attention_map": attention}))
    assert alone.shape == (400, 600, 3)
    mask = attention_mask(attention[None], network.threshold, network.image_size)[0].numpy()
    large = np.asarray(Image.fromarray(mask).resize((600, 400), Image.Resampling.NEAREST))
    white = (alone == 255).all(axis=2)
    assert white.any() and not white[~large].any() and white[large].mean() < 0.2
    # Farthest from the attention the picture is as it was; at the attention it is not.
    assert (alone[350:, :50] == 0).all() and (alone[130, 350] != array[130, 350]).any()


@pytest.mark.parametrize("size, shown", [((3000, 1500), (1024, 512)), ((30, 20), (390, 260)), ((2000, 40), (1024, 20))])
def test_overlays_have_a_size_to_look_at(size, shown):
    network = _network(instance_size=256)
    pictures = InstancePictures(network)
    image = torch.full((3, size[1], size[0]), 9, dtype=torch.uint8)
    assert pictures.draw(image, {"attention_map": torch.zeros(2, 2)}).size == shown
    boxes = torch.tensor([[0.0, 0, max(size), max(size)]]).repeat(3, 1)
    boxes[0] = torch.tensor([0.5, 0.25, 0.75, 0.75]) * torch.tensor([*size, *size])
    found = {"attention_map": torch.zeros(2, 2), "instance_boxes": boxes, "instance_scores": torch.ones(3)}
    drawn = pictures.draw(image, found)
    assert _near(drawn, (shown[0] // 2, shown[1] * 5 // 8), ORANGE)
    assert drawn.width == shown[0] + 3 * (228 + 8) and drawn.height >= shown[1]


def test_drawn_instances_are_what_the_network_gets():
    network = _network()
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[-10.0, 0, 40, 50], [30.0, 10, 60, 40], [0.0, 0, 20, 20]])
    crops = InstancePictures(network)._instances(image, boxes)
    expected = network.crops([image], boxes[None])[0] * network.std[0] + network.mean[0]
    found = torch.stack([torch.from_numpy(np.array(crop)).permute(2, 0, 1) for crop in crops])
    assert (found - expected).abs().max() <= 0.51
    assert cut_instances([image], boxes[None], 32)[1].min() == 0
