"""The network as it is shipped and exported: plain tensors in and out, no automatic differentiation."""

from collections.abc import Mapping
from typing import Any

import torch

from label_efficient.networks import first_weights
from label_efficient.networks.model_info import network_arguments

from .network import METHODS, MultiMixNet, check_image_size
from .saliency import encode_with_saliency

WEIGHT_PARTS = first_weights.WeightParts(
    core="encoder.", classifiers=("branch.",), optional=("decoder.",), same="the decoder's bridge (by method)"
)


class ShippedMultiMix(MultiMixNet):
    """The weights of `MultiMixNet`, for inference: image B x 1 x H x W to one tensor of all predictions.

    With both tasks: B x (2 + K) x H x W. Channels 0 and 1 are background and lung: 0 and the mask logit, whose softmax
    is the mask logit's sigmoid. The other K are the image's class logits, the same at every position (see
    `split_output`). So every program that expects one tensor from a network can use it, and one that names mask values
    by channels calls 1 lung. Segmentation alone: B x 2 x H x W; classification alone: B x K.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Image B x 1 x H x W, preprocessed, to the predictions."""
        if torch.jit.is_scripting():
            features, logits, saliency = self.encode(image)
        else:
            # In half precision most of the map would be lost, under AMP as elsewhere.
            with torch.autocast(image.device.type, enabled=False):
                features, logits, saliency = self.encode(image)
        if self.decoder is None:
            return logits
        mask_logits = self.decoder(features, image, saliency if self.decoder.bridge else None)
        background = torch.zeros_like(mask_logits)
        if self.branch is None:
            return torch.cat([background, mask_logits], dim=1)
        spread = logits[:, :, None, None].expand(-1, -1, image.shape[2], image.shape[3])
        return torch.cat([background, mask_logits, spread], dim=1)

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


def build_shipped(info: Mapping[str, Any], **changes: Any) -> ShippedMultiMix:
    """The network that `model.pt` has the weights of, see `model_info.network_arguments`."""
    check_image_size(info["image_size"])
    # Dropout is of training: a description need not have it.
    return ShippedMultiMix(
        **network_arguments(ShippedMultiMix, {"dropout": 0.0, "decoder_dropout": 0.0, **info}, changes)
    )


def init_network(network: MultiMixNet, ckpt_path: str | None, decoder_only: bool = False) -> MultiMixNet:
    """The network, with the weights of an earlier run or of the bundle if a path is given, see `first_weights`.

    With `decoder_only` nothing but the decoder of a network that also classifies is trained: masks alone would change
    the encoder under a classifier that no label keeps right.
    """
    if ckpt_path is not None:
        first_weights.init_network(network, parts=WEIGHT_PARTS, ckpt_path=ckpt_path)
    if decoder_only and network.branch is not None:
        network.encoder.requires_grad_(False)
        network.branch.requires_grad_(False)
    return network


def split_output(pred: torch.Tensor, method: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The output of `ShippedMultiMix` as mask logits B x 1 x H x W and class logits B x K, or None."""
    parts = METHODS[method]
    if not parts.segments:
        return None, pred
    return pred[:, 1:2], pred[:, 2:, 0, 0] if parts.classifies else None
