"""Images that leave little to choose from: single pixels, strips, nothing that stands out."""

import numpy as np
import pytest
import torch

from gated_attention.instances import select_instances
from gated_attention.losses import GatedAttentionLoss
from gated_attention.network import GatedAttentionNet


@torch.no_grad()
def test_images_smaller_than_a_crop_single_pixels_and_strips():
    instance_size, shapes = 96, [(1, 1), (1, 700), (700, 1), (2, 900), (3, 2), (50, 40)]
    torch.manual_seed(0)
    network = GatedAttentionNet(
        global_backbone="resnet18", instance_backbone="resnet18", num_classes=2, image_size=64,
        instance_size=instance_size, num_instances=3,
    ).eval()  # fmt: skip
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (3, *shape), dtype=np.uint8)) for shape in shapes]
    found = network(images)
    boxes = found["instance_boxes"]
    crops = network.crops(images, boxes)
    assert all(torch.isfinite(found[name]).all() for name in found) and torch.isfinite(crops).all()
    for index, (image, (height, width)) in enumerate(zip(images, shapes, strict=True)):
        alone = network([image])
        torch.testing.assert_close(alone["logits"][0], found["logits"][index], atol=1e-4, rtol=1e-3)
        for box, crop in zip(boxes[index].tolist(), crops[index], strict=True):
            x0, y0, x1, y1 = box
            assert x1 - x0 == pytest.approx(y1 - y0, abs=1e-3) and x1 > x0
            # Within the image where it fits, else around it; never beside it.
            for low, high, side in ((x0, x1, width), (y0, y1, height)):
                inside = low >= -1e-3 and high <= side + 1e-3
                assert inside or (low <= 1e-3 and high >= side - 1e-3), (box, height, width)
            # Samples are up to two pixels apart: of a thinner image a crop far larger than it may hold nothing.
            assert crop.abs().max() > 0 or (min(height, width) == 1 and y1 - y0 > instance_size)
    # A single pixel, enlarged, is that pixel.
    expected = (images[0].float() - network.mean[0]) / network.std[0]
    inner = network.crops(images[:1], torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]))[0, 0]
    torch.testing.assert_close(inner, expected.expand(-1, instance_size, instance_size), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (1, 1), (1, 90)])
@pytest.mark.parametrize("case", ["equal", "zero", "none above the threshold", "single position"])
def test_without_a_component_the_whole_image_is_the_instance(case, height, width):
    attention, threshold = torch.ones(1, 2, 2) * 0.3, 0.5
    if case == "zero":
        attention = attention * 0
    if case == "none above the threshold":
        attention, threshold = torch.zeros(1, 5, 5), 0.999
        attention[0, 2, 2] = 1.0  # enlarged by a factor without a sample in its very middle
    if case == "single position":
        attention = torch.ones(1, 1, 1)
    boxes, scores = select_instances(attention, torch.tensor([[height, width]]), 3, 160, threshold, 0.1, 0.4, 0.3)
    side = max(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    expected = torch.tensor([left, top, left + side, top + side])
    torch.testing.assert_close(boxes, expected.expand(1, 3, 4))
    assert torch.equal(scores, torch.ones(1, 3))


def test_lambda_below_1_needs_a_fusion():
    loss = GatedAttentionLoss()
    loss.lambda_ = 0.5
    with pytest.raises(ValueError, match=r"lambda is 0\.5"):
        loss({"global_logits": torch.zeros(2, 2)}, torch.zeros(2, dtype=torch.long))
