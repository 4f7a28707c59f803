"""The saliency map of the bridge: by automatic differentiation in training, in closed form where files are exported."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

NEGATIVE_SLOPE = 0.2  # of the network's LeakyReLU


def saliency_map(scores: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """Absolute gradient of each image's winning class score with respect to the image: B x 1 x H x W both, detached.

    No gradient of a parameter is computed or changed, no random number is drawn, and no gradient flows back through
    the map. It is computed in single precision under AMP too (half would lose most of it), inside `torch.no_grad()`
    and `torch.inference_mode()` too. `scores` makes logits B x K, each image alone (no batch norm), without dropout.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        precision = torch.promote_types(image.dtype, torch.float32)
        variable = image.detach().clone().to(precision).requires_grad_()
        logits = scores(variable)
        winning = logits.gather(1, logits.argmax(dim=1, keepdim=True))
        # The sum of the scores has each image's own gradient: the images do not mix.
        (gradient,) = torch.autograd.grad(winning.sum(), variable)
    return gradient.abs()


def encode_with_saliency(
    image: torch.Tensor,
    convolutions: list[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor,
    negative_slope: float = NEGATIVE_SLOPE,
    epsilon: float = 1e-5,
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The encoder, its classification branch and the saliency map without automatic differentiation.

    The backward pass is written out, operator by operator, so that TorchScript and ONNX files can hold it: equal to
    `saliency_map` up to rounding. No dropout. Of an image B x 1 x H x W, H and W multiples of 32, the blocks' features,
    logits B x K, and the map B x 1 x H x W; by the weights of the 3 x 3 convolutions, two of each block, shallow to
    deep, and those of the branch's linear layer, K x C and (K,).
    """
    features: list[torch.Tensor] = []
    normalised: list[torch.Tensor] = []
    scales: list[torch.Tensor] = []
    hidden = image
    for index, kernel in enumerate(convolutions):
        if index > 0 and index % 2 == 0:
            hidden = F.max_pool2d(hidden, 2)
        hidden = F.conv2d(hidden, kernel, padding=1)
        centred = hidden - hidden.mean(dim=(2, 3), keepdim=True)
        scales.append(torch.rsqrt(centred.square().mean(dim=(2, 3), keepdim=True) + epsilon))
        # The network's own operator: rounded otherwise, the maxima in flat regions would be others.
        hidden = F.group_norm(hidden, int(hidden.shape[1]), eps=epsilon)
        normalised.append(hidden)
        hidden = F.leaky_relu(hidden, negative_slope)
        if index % 2 == 1:
            features.append(hidden)
    pooled = F.max_pool2d(hidden, 2)
    logits = F.linear(pooled.mean(dim=(2, 3)), weight, bias)

    # d score / d pooled is the winner's weight, shared by the positions of the average.
    gradient = weight[logits.argmax(dim=1)][:, :, None, None] / float(pooled.shape[2] * pooled.shape[3])
    gradient = _max_pool_backward(gradient.expand_as(pooled), features[-1])
    for index in range(len(convolutions) - 1, -1, -1):
        gradient = torch.where(normalised[index] > 0, gradient, negative_slope * gradient)
        projection = (gradient * normalised[index]).mean(dim=(2, 3), keepdim=True)
        gradient = gradient - gradient.mean(dim=(2, 3), keepdim=True) - normalised[index] * projection
        gradient = F.conv_transpose2d(gradient * scales[index], convolutions[index], padding=1)
        if index > 0 and index % 2 == 0:
            gradient = _max_pool_backward(gradient, features[index // 2 - 1])
    return features, logits, gradient.abs()


def _max_pool_backward(gradient: torch.Tensor, pooled_from: torch.Tensor) -> torch.Tensor:
    """Gradient of 2 x 2 max-pooling: all of it to the first maximum of each window, as in torch's own."""
    a, b = pooled_from[:, :, 0::2, 0::2], pooled_from[:, :, 0::2, 1::2]
    c, d = pooled_from[:, :, 1::2, 0::2], pooled_from[:, :, 1::2, 1::2]
    highest = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
    at_a = a == highest
    at_b = (b == highest) & ~at_a
    at_c = (c == highest) & ~at_a & ~at_b
    at_d = ~at_a & ~at_b & ~at_c
    upper = torch.stack([gradient * at_a, gradient * at_b], dim=-1).flatten(-2)
    lower = torch.stack([gradient * at_c, gradient * at_d], dim=-1).flatten(-2)
    return torch.stack([upper, lower], dim=-2).flatten(-3, -2)
