"""Attention modules that go inside the residual blocks (Table 6 of the LSANet paper)."""

import math
from collections.abc import Callable

import torch
from torch import nn

from label_efficient.options import one_of


def _bottleneck(channels: int) -> nn.Sequential:
    # 1x1 convolutions instead of linear layers: they act on B x C x 1 x 1 and have no bias to initialise.
    hidden = max(channels // 16, 1)
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
    )


class _SqueezeExcitation(nn.Module):
    """SE (Hu et al. 2018): x * sigmoid(W2 relu(W1 avgpool(x))), reduction 16. Keeps B x C x H x W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = _bottleneck(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.fc(x.mean(dim=(2, 3), keepdim=True)))


class _CBAM(nn.Module):
    """CBAM (Woo et al. 2018): channel attention, then spatial attention (7x7). Keeps B x C x H x W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = _bottleneck(channels)
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        average = self.fc(x.mean(dim=(2, 3), keepdim=True))
        maximum = self.fc(x.amax(dim=(2, 3), keepdim=True))
        x = x * torch.sigmoid(average + maximum)
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.spatial(pooled))


class _EfficientChannelAttention(nn.Module):
    """ECA (Wang et al. 2020): one 1-D convolution over the channels. Keeps B x C x H x W.

    The kernel is the odd number nearest to |log2(C) / 2 + 1 / 2| (their equation 12).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel_size = int(abs(math.log2(channels) / 2 + 0.5))
        kernel_size += 1 - kernel_size % 2
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.conv(x.mean(dim=(2, 3)).unsqueeze(1)).squeeze(1)
        return x * torch.sigmoid(weights)[:, :, None, None]


class _StyleRecalibration(nn.Module):
    """SRM (Lee et al. 2019): linear map of each channel's (mean, std), batch norm. Keeps B x C x H x W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 2))
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The variance with N in the denominator: a 1 x 1 map has a style (std 0), not a NaN.
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
        style = mean * self.weight[:, 0] + (variance + 1e-5).sqrt() * self.weight[:, 1]
        return x * torch.sigmoid(self.norm(style))[:, :, None, None]


class _SimAM(nn.Module):
    """SimAM (Yang et al. 2021): parameter-free energy of every position. Keeps B x C x H x W."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A map of one position has no neighbours to compare with: its deviation and energy are 0.
        count = max(x.shape[2] * x.shape[3] - 1, 1)
        deviation = (x - x.mean(dim=(2, 3), keepdim=True)).square()
        variance = deviation.sum(dim=(2, 3), keepdim=True) / count
        return x * torch.sigmoid(deviation / (4 * (variance + 1e-4)) + 0.5)


_MODULES: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "se": _SqueezeExcitation,
    "cbam": _CBAM,
    "eca": _EfficientChannelAttention,
    "srm": _StyleRecalibration,
    "simam": lambda channels: _SimAM(),
}
ATTENTIONS = tuple(_MODULES)


def attention_places(name: str, channels: int) -> tuple[nn.Module, nn.Module]:
    """The modules of a residual block after its second convolution, before its norm, and before the addition.

    One of the two does nothing. SimAM's authors have it in the first place (of a bottleneck, in its inner width), those
    of the others in the second, which has so many `channels`.
    """
    module = build_attention(name, channels)
    return (module, nn.Identity()) if name == "simam" else (nn.Identity(), module)


def build_attention(name: str, channels: int) -> nn.Module:
    """Make the module of one residual block; ValueError: `name` is not one of `ATTENTIONS`."""
    return _MODULES[one_of("attention", name, ATTENTIONS)](channels)
