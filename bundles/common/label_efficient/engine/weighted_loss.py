"""The cross-entropy with weights of the classes: one convention for all bundles."""

import torch
from torch.nn import functional as F


def weighted_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor | None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean over the images of the cross-entropy, each times the weight of its class; logits B x K, targets (B,).

    torch's own mean divides by the sum of the weights in the batch: an image would count by what it is beside. Here
    it counts the same in every batch; the weights have mean 1 over the training images, see `image_data.class_weights`.
    """
    if class_weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    return F.cross_entropy(
        logits, targets, weight=class_weights, label_smoothing=label_smoothing, reduction="none"
    ).mean()
