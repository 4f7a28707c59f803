"""The backbones of the LSANet paper, each with its four output nodes C1..C4 and a standard ImageNet stem.

Every backbone is a plain classifier (image -> logits of C4) with three more methods: `forward_nodes` gives
the four feature maps, `classify` turns the last of them into logits, `tail` holds the stages after a node.
"""

from typing import Any, cast

import torch
from monai.networks.nets import DenseNet
from monai.networks.nets.resnet import ResNet, ResNetBlock, ResNetBottleneck, get_inplanes
from torch import nn

from label_efficient.networks.block_attention import attention_places
from label_efficient.options import one_of

NODES = ("C1", "C2", "C3", "C4")

# Residual stages: block, blocks per stage, groups, width of one group at 64 planes.
_RESNETS: dict[str, tuple[str, list[int], int, int]] = {
    "resnet18": ("basic", [2, 2, 2, 2], 1, 64),
    "resnet34": ("basic", [3, 4, 6, 3], 1, 64),
    "resnet50": ("bottleneck", [3, 4, 6, 3], 1, 64),
    "resnet101": ("bottleneck", [3, 4, 23, 3], 1, 64),
    "wide_resnet50_2": ("bottleneck", [3, 4, 6, 3], 1, 128),
    "wide_resnet101_2": ("bottleneck", [3, 4, 23, 3], 1, 128),
    "resnext50_32x4d": ("bottleneck", [3, 4, 6, 3], 32, 4),
    "resnext101_32x8d": ("bottleneck", [3, 4, 23, 3], 32, 8),
}
_DENSENETS: dict[str, tuple[int, ...]] = {
    "densenet121": (6, 12, 24, 16),
    "densenet169": (6, 12, 32, 32),
    "densenet201": (6, 12, 48, 32),
}
_VGGS: dict[str, tuple[int, ...]] = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}

BACKBONES = (*_RESNETS, *_DENSENETS, *_VGGS)


class _BasicBlock(ResNetBlock):
    """MONAI's basic block with an attention module, see `block_attention.attention_places`."""

    attention_name = "none"

    def __init__(self, in_planes: int, planes: int, **kwargs) -> None:
        super().__init__(in_planes, planes, **kwargs)
        self.inner_attention, self.attention = attention_places(self.attention_name, planes * self.expansion)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = self.act(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.inner_attention(self.conv2(out))))
        return self.act(out + residual)


class _Bottleneck(ResNetBottleneck):
    """MONAI's bottleneck with groups and width (WRN, ResNeXt) and an attention module, as in the basic block."""

    attention_name = "none"
    groups = 1
    base_width = 64

    def __init__(self, in_planes: int, planes: int, stride: int = 1, **kwargs) -> None:
        super().__init__(in_planes, planes, stride=stride, **kwargs)
        width = planes * self.base_width // 64 * self.groups
        if width != planes or self.groups != 1:
            self.conv1 = nn.Conv2d(in_planes, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=self.groups, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, planes * self.expansion, 1, bias=False)
        self.inner_attention, self.attention = attention_places(self.attention_name, planes * self.expansion)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = self.act(self.bn1(self.conv1(x)))
        out = self.act(self.bn2(self.inner_attention(self.conv2(out))))
        out = self.attention(self.bn3(self.conv3(out)))
        return self.act(out + residual)


class ResNetBackbone(ResNet):
    """ResNet, wide ResNet or ResNeXt: C1, C2, C3 after Conv2_x, Conv3_x, Conv4_x."""

    def __init__(self, name: str, num_classes: int, in_channels: int = 3, attention: str = "none") -> None:
        kind, layers, groups, base_width = _RESNETS[name]
        base: type[_BasicBlock | _Bottleneck] = _BasicBlock if kind == "basic" else _Bottleneck
        # MONAI's ResNet builds the blocks itself from a class: what they need travels as class attributes.
        options = {"attention_name": attention, "groups": groups, "base_width": base_width}
        super().__init__(
            block=type(base.__name__, (base,), options),
            layers=layers,
            block_inplanes=get_inplanes(),
            spatial_dims=2,
            n_input_channels=in_channels,
            conv1_t_size=7,
            conv1_t_stride=2,
            num_classes=num_classes,
            bias_downsample=False,
        )
        self.name = name
        self.node_channels = tuple(planes * base.expansion for planes in get_inplanes())

    def forward_nodes(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Image B x C x H x W to the feature maps of C1..C4, shallow to deep."""
        c1 = self.layer1(self.maxpool(self.act(self.bn1(self.conv1(x)))))
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        return [c1, c2, c3, self.layer4(c3)]  # written out: TorchScript does not loop over layers

    def classify(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Feature map of C4 to logits B x K."""
        # MONAI types `fc` as optional; with `feed_forward=True` it is always there.
        return cast(nn.Module, self.fc)(self.avgpool(feature_map).flatten(1))

    def tail(self, node: int) -> nn.Sequential:
        """The stages after node `node` (0 for C1), up to the feature map of C4."""
        return nn.Sequential(*[self.layer2, self.layer3, self.layer4][node:])


class DenseNetBackbone(DenseNet):
    """DenseNet: C1, C2, C3 after dense blocks 1, 2, 3; C4 is the original classifier."""

    def __init__(self, name: str, num_classes: int, in_channels: int = 3) -> None:
        blocks = _DENSENETS[name]
        super().__init__(
            spatial_dims=2, in_channels=in_channels, out_channels=num_classes, init_features=64, block_config=blocks
        )
        self.name = name
        channels = 64
        self.node_channels: tuple[int, ...] = ()
        for layers in blocks:
            channels += 32 * layers
            self.node_channels += (channels,)
            channels //= 2

    def forward_nodes(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Image B x C x H x W to the feature maps of C1..C4, shallow to deep."""
        maps: list[torch.Tensor] = []
        for name, layer in self.features.named_children():
            x = layer(x)
            if name in ("denseblock1", "denseblock2", "denseblock3"):
                maps.append(x)
        return [*maps, self.class_layers.get_submodule("relu")(x)]

    def classify(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Feature map of C4 to logits B x K."""
        classifier: Any = self.class_layers
        return classifier.out(classifier.flatten(classifier.pool(feature_map)))

    def tail(self, node: int) -> nn.Sequential:
        """The stages after node `node` (0 for C1), up to the feature map of C4."""
        stages = [m for i in range(node, 3) for m in (f"transition{i + 1}", f"denseblock{i + 2}")]
        return nn.Sequential(*[self.features.get_submodule(s) for s in (*stages, "norm5")], nn.ReLU())


class VGGBackbone(nn.Module):
    """VGG without batch norm: C1..C4 after the last four max-pooling layers; pooled linear classifier."""

    def __init__(self, name: str, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.name = name
        layers: list[nn.Module] = []
        pools: list[int] = []
        for channels, convolutions in zip((64, 128, 256, 512, 512), _VGGS[name], strict=True):
            for _ in range(convolutions):
                layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
                in_channels = channels
            pools.append(len(layers))
            layers.append(nn.MaxPool2d(2))
        self.pools = pools
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(512, num_classes)
        self.node_channels = (128, 256, 512, 512)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(torch.Tensor, module.bias))

    def forward_nodes(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Image B x C x H x W to the feature maps of C1..C4, shallow to deep."""
        nodes: list[torch.Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.pools:
                nodes.append(x)
        return nodes[1:]

    def classify(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Feature map of C4 to logits B x K."""
        return self.fc(feature_map.mean(dim=(2, 3)))

    def tail(self, node: int) -> nn.Sequential:
        """The stages after node `node` (0 for C1), up to the feature map of C4."""
        return cast(nn.Sequential, self.features[self.pools[node + 1] + 1 :])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Image B x C x H x W to logits B x K."""
        return self.classify(self.features(x))


Backbone = ResNetBackbone | DenseNetBackbone | VGGBackbone


def build_backbone(name: str, num_classes: int, *, in_channels: int = 3, attention: str = "none") -> Backbone:
    """Make one of `BACKBONES`; ValueError: the name is unknown, or attention has no residual block to go into."""
    if name in _RESNETS:
        return ResNetBackbone(name, num_classes, in_channels, attention)
    one_of("backbone", name, BACKBONES)
    check_attention(name, attention)
    if name in _DENSENETS:
        return DenseNetBackbone(name, num_classes, in_channels)
    return VGGBackbone(name, num_classes, in_channels)


def check_attention(name: str, attention: str) -> None:
    """Refuse attention in a backbone that has no place for it, with a ValueError that has those that do."""
    if attention != "none" and name not in _RESNETS:
        raise ValueError(
            f"attention={attention!r} goes into residual blocks, and {name} has none: "
            f"use attention='none', or one of the backbones {', '.join(_RESNETS)}"
        )


def check_image_size(name: str, image_size: int) -> None:
    """Refuse images that leave no position at C4, with a ValueError that has the smallest size that works."""
    # ResNets round up in every stage and take any size; the others have poolings that round down.
    smallest = {**dict.fromkeys(_DENSENETS, 29), **dict.fromkeys(_VGGS, 32)}.get(name, 1)
    if image_size < smallest:
        raise ValueError(
            f"image_size={image_size} is too small for {name}: its poolings leave no position before the "
            f"classifier. Use image_size>={smallest} (images are resized), or a ResNet"
        )
