"""The network of MultiMix and of the methods it is compared with: one U-Net, of which each method builds its parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from label_efficient.networks.model_info import network_arguments
from label_efficient.options import one_of

from .saliency import NEGATIVE_SLOPE, saliency_map

WIDTHS = (16, 32, 64, 128, 256)  # channels of the encoder's five blocks
BRIDGE_STRIDE = 8  # the first decoder block works at an eighth of the image's size
SIZE_STEP = 32  # four halvings between the blocks, one in the classification branch


@dataclass(frozen=True)
class Method:
    """Which parts a method has."""

    classifies: bool = True  # the classification branch
    segments: bool = True  # the decoder
    bridge: bool = False  # the saliency map enters the decoder
    pseudo_labels: bool = False  # learns from unlabelled images for classification
    mask_consistency: bool = False  # learns from unlabelled images for segmentation (the KL term)


METHODS = {
    "unet": Method(classifies=False),
    "enc": Method(segments=False),
    "encssl": Method(segments=False, pseudo_labels=True),
    "umtl": Method(),
    "umtls": Method(bridge=True),
    "umtls_ssl": Method(bridge=True, pseudo_labels=True),
    "multimix": Method(bridge=True, pseudo_labels=True, mask_consistency=True),
}


class ConvBlock(nn.Module):
    """(3 x 3 convolution, InstanceNorm without affine parameters, LeakyReLU 0.2) twice, then dropout.

    The convolutions have no bias: InstanceNorm takes it away again.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.dropout = dropout

    def forward(self, features: torch.Tensor, drop: bool = True) -> torch.Tensor:
        """Features B x C x H x W to B x C' x H x W; without `drop` as in evaluation, whatever the mode."""
        features = _normalise_and_activate(self.conv1(features))
        features = _normalise_and_activate(self.conv2(features))
        return F.dropout(features, self.dropout, self.training and drop)


def _normalise_and_activate(features: torch.Tensor, negative_slope: float = NEGATIVE_SLOPE) -> torch.Tensor:
    # InstanceNorm is GroupNorm with one channel a group, whose operator is three times as fast on CPUs;
    # a plain number of groups is what ONNX export can write.
    return F.leaky_relu(F.group_norm(features, int(features.shape[1])), negative_slope, inplace=True)


class Encoder(nn.Module):
    """Five blocks with 2 x 2 max-pooling between them."""

    def __init__(self, dropout: float = 0.25) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ConvBlock(ins, outs, dropout) for ins, outs in zip((1, *WIDTHS), WIDTHS, strict=False)
        )

    def forward(self, image: torch.Tensor, drop: bool = True) -> list[torch.Tensor]:
        """Image B x 1 x H x W to the five blocks' features, B x 16 x H x W to B x 256 x H/16 x W/16."""
        features: list[torch.Tensor] = []
        for block in self.blocks:
            image = block(F.max_pool2d(features[-1], 2) if features else image, drop)
            features.append(image)
        return features


class ClassBranch(nn.Module):
    """Max-pooling, global average pooling, linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The deepest features B x 256 x h x w to logits B x K."""
        return self.linear(F.max_pool2d(features, 2).mean(dim=(2, 3)))


class Decoder(nn.Module):
    """Four steps of bilinear x 2 upsampling, concatenation with the encoder's features and a double convolution.

    With `bridge` the image and its saliency map, averaged over 8 x 8 pixels, are two more channels of the first step.
    """

    def __init__(self, bridge: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.bridge = bridge
        self.stride = BRIDGE_STRIDE
        deeper, skips = WIDTHS[:0:-1], WIDTHS[-2::-1]
        extra = (2 if bridge else 0, 0, 0, 0)
        self.blocks = nn.ModuleList(
            ConvBlock(below + skip + more, skip, dropout)
            for below, skip, more in zip(deeper, skips, extra, strict=True)
        )
        self.to_mask = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(
        self, features: list[torch.Tensor], image: torch.Tensor, saliency: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The encoder's features, the image and its map (both B x 1 x H x W) to mask logits B x 1 x H x W."""
        decoded = features[-1]
        for index, block in enumerate(self.blocks):
            decoded = F.interpolate(decoded, scale_factor=2.0, mode="bilinear", align_corners=False)
            parts = [decoded, features[len(features) - 2 - index]]
            if index == 0 and saliency is not None:
                parts.append(F.avg_pool2d(torch.cat([image, saliency], dim=1), self.stride))
            decoded = block(torch.cat(parts, dim=1))
        return self.to_mask(decoded)


class MultiMixNet(nn.Module):
    """Encoder, classification branch, decoder and saliency bridge, as far as the method (of `METHODS`) has them."""

    def __init__(
        self, *, method: str = "multimix", num_classes: int = 2, dropout: float = 0.25, decoder_dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.method = METHODS[one_of("method", method, METHODS)]
        self.encoder = Encoder(dropout)
        self.branch: Any = ClassBranch(num_classes) if self.method.classifies else None
        self.decoder: Any = Decoder(self.method.bridge, decoder_dropout) if self.method.segments else None

    def forward(self, images: Mapping[str, torch.Tensor] | torch.Tensor) -> dict[str, torch.Tensor]:
        """What the training of a method needs, each stream on the shortest way; or everything on one batch.

        Args:
            images: Batches B x 1 x H x W by the name of their stream (`streams.STREAMS`); or one batch, as in
                validation.

        Returns:
            For streams: `logits`, `weak_logits` (without gradient) and `strong_logits` (each B x K), `mask_logits`
            and `unlabelled_mask_logits` (each B x 1 x H x W). For one batch: `logits` and `mask_logits`.
        """
        outputs: dict[str, torch.Tensor] = {}
        if isinstance(images, torch.Tensor):
            features = self.encoder(images)
            if self.branch is not None:
                outputs["logits"] = self.branch(features[-1])
            if self.decoder is not None:
                outputs["mask_logits"] = self._mask_logits(images, features)
            return outputs
        if self.branch is not None:
            names = {"class_labelled": "logits", "class_strong": "strong_logits"}
            outputs |= _by_stream(self._logits, images, names)
            if "class_weak" in images:
                with torch.no_grad():
                    outputs["weak_logits"] = self._logits(images["class_weak"])
        if self.decoder is not None:
            names = {"mask_labelled": "mask_logits", "mask_unlabelled": "unlabelled_mask_logits"}
            outputs |= _by_stream(lambda image: self._mask_logits(image, self.encoder(image)), images, names)
        return outputs

    def _logits(self, image: torch.Tensor, drop: bool = True) -> torch.Tensor:
        return self.branch(self.encoder(image, drop)[-1])

    def _mask_logits(self, image: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        return self.decoder(features, image, self.saliency_map(image) if self.method.bridge else None)

    def saliency_map(self, image: torch.Tensor) -> torch.Tensor:
        """Saliency map of each image's winning class, B x 1 x H x W, see `saliency.saliency_map`."""
        return saliency_map(lambda image: self._logits(image, drop=False), image)


def _by_stream(
    compute: Callable[[torch.Tensor], torch.Tensor], images: Mapping[str, torch.Tensor], names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """What a part of the network computes of the streams that there are, by the names of the outputs."""
    streams = [stream for stream in names if stream in images]
    if not streams:  # masks alone, from a program that knows no classes
        return {}
    # InstanceNorm treats every image alone: one batch of all streams gives what one of each would.
    outputs = compute(torch.cat([images[stream] for stream in streams]))
    parts = outputs.split([len(images[stream]) for stream in streams])
    return {names[stream]: part for stream, part in zip(streams, parts, strict=True)}


def build_network(info: Mapping[str, Any], **changes: Any) -> MultiMixNet:
    """The network that a description has the arguments of, see `model_info.network_arguments`."""
    return MultiMixNet(**network_arguments(MultiMixNet, info, changes))


def check_image_size(image_size: int) -> None:
    """Raise a ValueError unless the network can work at this size."""
    if image_size < SIZE_STEP or image_size % SIZE_STEP:
        raise ValueError(
            f"image_size={image_size}: expected a multiple of {SIZE_STEP}, such as 64, 128, 224, 256 or 512 (the "
            "network halves it five times)"
        )
