"""The network of MultiMix and of the methods it is compared with: one U-Net, of which each method builds its parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from label_efficient.networks.model_info import network_arguments

from .saliency import NEGATIVE_SLOPE, saliency_map

WIDTHS = (16, 32, 64, 128, 256)  # channels of the encoder's five blocks
BRIDGE_STRIDE = 8  # the first decoder block works at an eighth of the image's size
SIZE_STEP = 32  # four halvings between the blocks, one in the classification branch


@dataclass(frozen=True)
class Method:
    """Which parts a method has.

    Attributes:
        classifies: Whether it has the classification branch.
        segments: Whether it has the decoder.
        bridge: Whether the saliency map enters the decoder.
        pseudo_labels: Whether it learns from unlabelled images for classification.
        mask_consistency: Whether it learns from unlabelled images for segmentation (the KL term).
    """

    classifies: bool = True
    segments: bool = True
    bridge: bool = False
    pseudo_labels: bool = False
    mask_consistency: bool = False


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

    Args:
        in_channels: Of the input B x C x H x W.
        out_channels: Of the output, of the same height and width.
        dropout: Probability that a value of the output is set to zero in training.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.dropout = dropout

    def forward(self, features: torch.Tensor, drop: bool = True) -> torch.Tensor:
        """Features to features; without `drop` as in evaluation, whatever the mode."""
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

    def __init__(self, bridge: bool) -> None:
        super().__init__()
        self.bridge = bridge
        self.stride = BRIDGE_STRIDE
        deeper, skips = WIDTHS[:0:-1], WIDTHS[-2::-1]
        extra = (2 if bridge else 0, 0, 0, 0)
        self.blocks = nn.ModuleList(
            ConvBlock(below + skip + more, skip) for below, skip, more in zip(deeper, skips, extra, strict=True)
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
    """Encoder, classification branch, decoder and saliency bridge, as far as the method has them.

    Args:
        method: One of `METHODS`.
        num_classes: K, at least 2; not used by a method that does not classify.
        dropout: Of the encoder's blocks.

    Raises:
        ValueError: If an argument is not one of these.
    """

    def __init__(self, *, method: str = "multimix", num_classes: int = 2, dropout: float = 0.25) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
        self.method = METHODS[method]
        if self.method.classifies and num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}: method {method!r} classifies and needs at least 2")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}, expected at least 0 and below 1")
        self.encoder = Encoder(dropout)
        self.branch = ClassBranch(num_classes) if self.method.classifies else None
        self.decoder = Decoder(self.method.bridge) if self.method.segments else None

    def forward(self, images: Mapping[str, torch.Tensor] | torch.Tensor) -> dict[str, torch.Tensor]:
        """What the training of a method needs, each stream on the shortest way; or everything on one batch.

        Args:
            images: Batches B x 1 x H x W by the name of their stream (`streams.STREAMS`); or one batch, as in
                validation.

        Returns:
            For streams: `logits`, `weak_logits` (without gradient) and `strong_logits` (each B x K), `mask_logits`
            and `unlabelled_mask_logits` (each B x 1 x H x W). For one batch: `logits` and `mask_logits`.
        """
        if isinstance(images, torch.Tensor):
            return self._predict(images)
        outputs: dict[str, torch.Tensor] = {}
        self._classify_streams(images, outputs)
        self._segment_streams(images, outputs)
        return outputs

    def _predict(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.encoder(image)
        outputs = {}
        if self.branch is not None:
            outputs["logits"] = self.branch(features[-1])
        if self.decoder is not None:
            outputs["mask_logits"] = self.decoder(features, image, self._bridge_input(image))
        return outputs

    def _classify_streams(self, images: Mapping[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> None:
        if self.branch is None:
            return
        names = {"class_labelled": "logits", "class_strong": "strong_logits"}
        names = {stream: output for stream, output in names.items() if stream in images}
        if not names:  # masks alone, from a program that knows no classes
            return
        # InstanceNorm treats every image alone: one batch of both streams gives what two batches would.
        logits = self.branch(self.encoder(torch.cat([images[stream] for stream in names]))[-1])
        parts = logits.split([len(images[stream]) for stream in names])
        outputs.update(zip(names.values(), parts, strict=True))
        if "class_weak" in images:
            with torch.no_grad():
                outputs["weak_logits"] = self.branch(self.encoder(images["class_weak"])[-1])

    def _segment_streams(self, images: Mapping[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> None:
        if self.decoder is None:
            return
        names = {"mask_labelled": "mask_logits", "mask_unlabelled": "unlabelled_mask_logits"}
        names = {stream: output for stream, output in names.items() if stream in images}
        image = torch.cat([images[stream] for stream in names])
        mask_logits = self.decoder(self.encoder(image), image, self._bridge_input(image))
        parts = mask_logits.split([len(images[stream]) for stream in names])
        outputs.update(zip(names.values(), parts, strict=True))

    def _bridge_input(self, image: torch.Tensor) -> torch.Tensor | None:
        return self.saliency_map(image) if self.method.bridge else None

    def saliency_map(self, image: torch.Tensor) -> torch.Tensor:
        """Saliency map of each image's winning class, B x 1 x H x W, see `saliency.saliency_map`."""
        branch = self.branch
        if branch is None:
            raise ValueError("a saliency map is of a class score, and this method does not classify")
        return saliency_map(lambda x: branch(self.encoder(x, drop=False)[-1]), image)


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
