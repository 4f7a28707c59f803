"""The network: a global branch on a small copy, attention, and a second look at the instances at full resolution."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from label_efficient.networks.backbones import Backbone, build_backbone, check_image_size
from label_efficient.networks.first_weights import WeightParts
from label_efficient.networks.model_info import network_arguments

from .attention import attention_map, build_attention
from .crops import cut_instances
from .instances import select_instances

METHODS = ("fusion", "global")
POOLINGS = ("concat", "attention")
ONE_POSITION = 32  # pixels of the small copy from which the feature map has one position only
EARLIER = {"attended_classifier": True}  # of weights whose description does not say it yet
NO_ATTENTION = "the attention map would have one position, and the whole image be the only instance"


class GatedAttentionNet(nn.Module):
    """Fine-grained classifier of microscopy images (Fan et al. 2020, figure 2).

    It takes whole images as they are stored, 3 x H x W in 0..255: the small copy for the global branch, the crops and
    the normalisation are its own, so that there is one place where pixels become input.

    Args:
        num_classes: N.
        method: "fusion", or "global" for the global branch alone.
        attention: One of `attention.ATTENTIONS`.
        attended_classifier: Whether the fusion sees the attended features of the small copy, or those of the backbone,
            so that networks with other attentions differ in where they look alone (Table 2 of the paper).
        global_backbone: Network of the small copy, one of `backbones.BACKBONES`.
        instance_backbone: Network of the instances, shared by all of them.
        image_size: Pixels a side of the small copy, to which images are squeezed.
        num_instances: K.
        instance_size: Pixels a side of a crop, s.
        threshold, min_box, window_box: As of `instances.select_instances`.
        max_box: The same, or None for no limit.
        pooling: "concat": the features of the K instances one after the other. "attention": their mean, weighted by
            attention.
        mean: Per channel, of the range 0..1; subtracted.
        std: Per channel; divided by.

    Raises:
        ValueError: If an argument is out of range or the sizes do not fit.
    """

    weight_parts = WeightParts(
        core="global_branch.",
        classifiers=("global_head.", "fusion_head."),
        optional=("instance_branch.",),
        same="attention and both backbones",
        shaped_by="classes or instances",
    )
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        method: str = "fusion",
        attention: str = "gated",
        attended_classifier: bool = True,
        global_backbone: str = "resnet18",
        instance_backbone: str = "resnet50",
        image_size: int = 224,
        num_instances: int = 4,
        instance_size: int = 336,
        threshold: float = 0.5,
        min_box: float = 0.1,
        max_box: float | None = None,
        window_box: float = 0.5,
        pooling: str = "concat",
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}, expected one of {', '.join(POOLINGS)}")
        if num_instances < 1:
            raise ValueError(f"num_instances is {num_instances}, expected 1 or more (method='global' has none)")
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold is {threshold}, expected at least 0 and less than 1")
        for key, value in (("min_box", min_box), ("window_box", window_box), ("max_box", max_box)):
            if value is not None and not 0 < value <= 1:
                allowed = "a share of the image's shorter side, above 0 and at most 1"
                raise ValueError(f"{key} is {value}, expected {allowed}")
        if window_box < min_box:
            raise ValueError(f"window_box is {window_box}, less than min_box ({min_box})")
        if max_box is not None and max_box < window_box:
            raise ValueError(f"max_box is {max_box}, less than min_box ({min_box}) or window_box ({window_box})")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean={list(mean)}, std={list(std)}: expected three numbers each, std above 0")
        check_image_size(global_backbone, image_size)
        check_image_size(instance_backbone, instance_size)
        if method == "fusion" and image_size <= ONE_POSITION:
            raise ValueError(f"image_size is {image_size}, expected more than {ONE_POSITION}: {NO_ATTENTION}")
        self.image_size = image_size
        self.num_instances = num_instances
        self.instance_size = instance_size
        self.threshold = threshold
        self.min_box = min_box
        self.max_box = 0.0 if max_box is None else max_box
        self.window_box = window_box
        self.attention_pooling = pooling == "attention"
        self.attended_classifier = attended_classifier
        # Not weights: model.json says them, and other weights must not bring others.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

        self.global_branch, channels = feature_extractor(global_backbone)
        self.attention = build_attention(attention, channels)
        self.global_head = nn.Linear(channels, num_classes)
        self.instance_branch: Backbone | None = None
        self.fusion_head: nn.Module | None = None
        if method == "fusion":
            self.instance_branch, features = feature_extractor(instance_backbone)
            looks = 1 if self.attention_pooling else num_instances
            self.fusion_head = nn.Linear(channels + features * looks, num_classes)

    def forward(self, images: torch.Tensor | list[torch.Tensor], fuse: bool = True) -> dict[str, torch.Tensor]:
        """Images to a dictionary.

        Args:
            images: B x 3 x H x W, or a list of 3 x H_i x W_i, in 0..255, uint8 or float.
            fuse: Whether to look at the instances. Without them there are no `logits`.

        Returns:
            `global_logits` (B x N), `attention_map` (B x h x w) and, with the instances, `logits` (B x N, the
            prediction), `instance_boxes` (B x K x 4, pixels of the original image) and `instance_scores` (B x K).
        """
        return self.look(list(images.unbind(0)) if isinstance(images, torch.Tensor) else images, fuse)

    def look(self, images: list[torch.Tensor], fuse: bool) -> dict[str, torch.Tensor]:
        """`forward` of a list of images."""
        for image in images:
            if image.ndim != 3 or image.shape[0] != 3:
                raise ValueError("expected images of 3 channels, 3 x H x W each, or one tensor B x 3 x H x W")
        features = self.global_branch.forward_nodes(self.thumbnails(images))[-1]
        attended = self.attention(features)
        global_features = attended.mean(dim=(2, 3))
        output = {"global_logits": self.global_head(global_features), "attention_map": attention_map(attended)}
        if self.instance_branch is None or self.fusion_head is None or not fuse:
            return output
        boxes, scores = self.boxes(images, output["attention_map"])
        crops = self.crops(images, boxes)
        # All instances of all images are one batch of the shared network.
        batch = crops.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        looks = self.instance_branch.forward_nodes(batch)[-1].mean(dim=(2, 3))
        looks = looks.view(len(images), self.num_instances, -1)
        if self.attention_pooling:
            weights = scores / scores.sum(dim=1, keepdim=True).clamp_min(1e-12)
            pooled = (looks * weights.unsqueeze(2).to(looks.dtype)).sum(dim=1)
        else:
            pooled = looks.flatten(1)
        if not self.attended_classifier:
            global_features = features.mean(dim=(2, 3))
        output["logits"] = self.fusion_head(torch.cat([global_features, pooled], dim=1))
        output["instance_boxes"], output["instance_scores"] = boxes, scores
        return output

    def parts(self, batch_size: int) -> list[tuple[nn.Module | None, tuple[int, int, int, int]]]:
        """The two branches, each with the shape of what it sees of a batch."""
        looks = batch_size * self.num_instances
        return [
            (self.global_branch, (batch_size, 3, self.image_size, self.image_size)),
            (self.instance_branch, (looks, 3, self.instance_size, self.instance_size)),
        ]

    def thumbnails(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Images 3 x H_i x W_i in 0..255, squeezed and normalised: float32 B x 3 x image_size x image_size."""
        size = [self.image_size, self.image_size]
        small: list[torch.Tensor] = []
        for image in images:
            for channel in range(3):
                # One by one, none kept: a large image in float32 would be four times its bytes.
                small.append(F.interpolate(image[channel][None, None].float(), size, mode="bilinear", antialias=True))
        batch = (torch.cat(small).view(-1, 3, size[0], size[1]) - self.mean) / self.std
        return batch.contiguous(memory_format=torch.channels_last)

    def boxes(self, images: list[torch.Tensor], attention: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes B x K x 4 and scores B x K of the instances, see `instances.select_instances`."""
        sizes = torch.tensor([[image.shape[1], image.shape[2]] for image in images])
        return select_instances(
            attention,
            sizes,
            self.num_instances,
            self.image_size,
            self.threshold,
            self.min_box,
            self.max_box,
            self.window_box,
        )

    def crops(self, images: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        """The instances, normalised, 0 (the mean) outside the image: float32 B x K x 3 x s x s."""
        crops, inside = cut_instances(images, boxes, self.instance_size)
        return crops.sub_(self.mean).div_(self.std).mul_(inside)


def build_network(info: Mapping[str, Any], **changes: Any) -> GatedAttentionNet:
    """The network that a description has the arguments of, see `model_info.network_arguments`."""
    return GatedAttentionNet(**network_arguments(GatedAttentionNet, EARLIER | dict(info), changes))


def feature_extractor(name: str) -> tuple[Backbone, int]:
    """One of `backbones.BACKBONES` without its classifier, and the number of channels of its last feature map."""
    backbone = build_backbone(name, 1)
    classifier = "class_layers.out" if name.startswith("densenet") else "fc"
    backbone.set_submodule(classifier, nn.Identity())
    return backbone, backbone.node_channels[-1]
