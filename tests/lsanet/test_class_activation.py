"""Where the network looks: against the weighted feature map that Grad-CAM is for a linear classifier."""

import pytest
import torch

from label_efficient.networks.backbones import build_backbone
from lsanet.inference import class_activation


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vgg16"])
def test_class_activation_is_the_classifiers_weighted_feature_map(name):
    torch.manual_seed(0)
    network = build_backbone(name, 3).eval()
    image, targets = torch.randn(3, 3, 192, 192), torch.tensor([2, 0, 2])
    heat = class_activation(network, image, targets)
    # With global pooling and a linear classifier Grad-CAM at C4 is, up to a factor, relu(w_class . features).
    features = network.forward_nodes(image)[-1].detach()
    weight = (network.class_layers.out if name == "densenet121" else network.fc).weight.detach()[targets]
    expected = torch.relu(torch.einsum("bchw,bc->bhw", features, weight))[:, None]
    expected = torch.nn.functional.interpolate(expected, (192, 192), mode="bilinear", align_corners=False)[:, 0]
    expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-12)
    assert heat.shape == (3, 192, 192) and heat.min() >= 0 and heat.max() <= 1
    torch.testing.assert_close(heat, expected, atol=1e-4, rtol=0)


def test_class_activation_of_small_images_is_taken_where_there_are_positions():
    network = build_backbone("resnet18", 3)
    heat = class_activation(network, torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    # The 8 x 8 map of C2 varies within a quarter of the image, which the 2 x 2 map of C4 cannot.
    assert heat[:, :16, :16].std() > 0 and heat.amax() <= 1
