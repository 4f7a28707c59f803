"""The network as it is shipped and exported: plain tensors in and out, no automatic differentiation."""

import torch
from torch import nn

from ._weights import load_weights
from .network import METHODS, MultiMixNet
from .saliency import encode_with_saliency


class ShippedMultiMix(MultiMixNet):
    """The weights of `MultiMixNet`, for inference: image B x 1 x H x W to one tensor of all predictions.

    With both tasks: B x (1 + K) x H x W, channel 0 the lung's mask logit, channels 1 to K the image's class logits,
    the same at every position (see `split_output`), so that every program that expects one tensor from a network can
    use it. Segmentation alone: B x 1 x H x W; classification alone: B x K.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Image B x 1 x H x W, preprocessed, to the predictions."""
        features, logits, saliency = self.encode(image)
        if self.decoder is None:
            return logits
        mask_logits = self.decoder(features, image, saliency if self.decoder.bridge else None)
        if self.branch is None:
            return mask_logits
        spread = logits[:, :, None, None].expand(-1, -1, image.shape[2], image.shape[3])
        return torch.cat([mask_logits, spread], dim=1)

    def encode(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Image B x 1 x H x W to the encoder's features, logits B x K and saliency map B x 1 x H x W.

        A method without the branch has no columns of logits and a map of zeros.
        """
        if self.branch is None:
            return self.encoder(image, False), image.new_zeros(image.shape[0], 0), torch.zeros_like(image)
        kernels: list[torch.Tensor] = []
        for block in self.encoder.blocks:
            kernels += [block.conv1.weight, block.conv2.weight]  # type: ignore
        return encode_with_saliency(image, kernels, self.branch.linear.weight, self.branch.linear.bias)


def init_network(network: nn.Module, ckpt_path: str | None) -> nn.Module:
    """The network, with the weights of an earlier run or of the bundle if a path is given."""
    if ckpt_path is not None:
        load_weights(network, ckpt_path)
    return network


def split_output(pred: torch.Tensor, method: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The output of `ShippedMultiMix` as mask logits B x 1 x H x W and class logits B x K, or None."""
    parts = METHODS[method]
    if not parts.segments:
        return None, pred
    return pred[:, :1], pred[:, 1:, 0, 0] if parts.classifies else None
