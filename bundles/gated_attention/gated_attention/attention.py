"""The attention modules: what weights the feature map of the global branch, and so says where to look again.

All have one interface. From X (B x C x h x w, not negative: after a ReLU) they compute the attended features A of the
same shape. The mean of A over the channels is the attention map; A averaged over the positions is what the global
classifier sees, so that its loss (in the paper the "global attention loss") trains the attention: the choice of
instances itself has no gradient. Whether the fusion sees A or X too is a setting, see `network.GatedAttentionNet`.
"""

from collections.abc import Callable
from functools import partial

import torch
from monai.networks.blocks import ChannelSELayer
from torch import nn
from torch.nn import functional as F

_REDUCTION = 16  # of the channels, in squeeze-and-excitation and global context, as in their papers


class GatedAttention(nn.Module):
    """Gated attention, equations 1 and 2 of the paper: channels that agree with the semantic map pass, others do not.

    The semantic map is made from two convolution blocks of C / 8 channels, of dilation 1 and 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 8, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, inner, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(),
            )
            for dilation in (1, 2)
        )
        for block in self.blocks:
            # The sum over many channels of size 1 would start the softmax at a single position.
            nn.init.constant_(block.get_submodule("1").weight, 1 / inner)  # type: ignore[arg-type]

    def semantic_map(self, x: torch.Tensor) -> torch.Tensor:
        """Equation 1: X (B x C x h x w) to S (B x h x w), not negative, sum 1 per image."""
        summed = torch.zeros_like(x[:, 0])
        for block in self.blocks:
            summed = summed + block(x).sum(dim=1)
        return torch.softmax(summed.flatten(1).float(), dim=1).view_as(summed)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """G = ReLU(tanh(X S)): X (B x C x h x w) to B x C in [0, 1)."""
        s = self.semantic_map(x).flatten(1)
        # Not a matrix product, which autocast would compute in half precision, where a gate rounds to 1.
        product = (x.flatten(2).float() * s.unsqueeze(1)).sum(dim=2)
        # In single precision tanh rounds to 1 from 9 on: a gate is below 1.
        return torch.relu(torch.tanh(product)).clamp(max=1 - 2**-24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X (B x C x h x w) to X_k g_k, whose mean over the channels is Omega of equation 2."""
        return x * self.gate(x)[:, :, None, None].to(x.dtype)


def _taken(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What each position takes from all, by softmax(query^T key): maps B x c x h x w (twice) and the values' shape."""
    weights = torch.softmax(torch.bmm(query.flatten(2).transpose(1, 2), key.flatten(2)), dim=2)
    return torch.bmm(value.flatten(2), weights.transpose(1, 2)).view_as(value)


class NonLocalAttention(nn.Module):
    """Spatial attention: the non-local block (Wang et al. 2018, equation 6, embedded Gaussian, C / 2): x + W_z y."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)
        # W_z is followed by batch norm of weight 0, as in section 4.1 of its paper: the block starts as the identity.
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X to attended features, B x C x h x w both."""
        return x + self.norm(self.out(_taken(self.theta(x), self.phi(x), self.g(x))))


class TrilinearAttention(nn.Module):
    """Channel-wise attention of TASN (Zheng et al. 2019, equation 2): M(X) = N(N(X) X^T) X, without parameters.

    N is the softmax over the second dimension; N(X) is over positions, N(. X^T) over channels.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X to attended features, B x C x h x w both."""
        flat = x.flatten(2)
        relation = torch.bmm(torch.softmax(flat, dim=2), flat.transpose(1, 2))
        return torch.bmm(torch.softmax(relation, dim=2), flat).view_as(x)


class DualAttention(nn.Module):
    """Dual attention (Fu et al. 2019): position and channel attention, each convolved, and the two summed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 8, 1)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        # Both weights start at 0, as in the paper: the block begins with X itself.
        self.alpha = nn.Parameter(torch.zeros(1))
        self.beta = nn.Parameter(torch.zeros(1))
        self.position_out, self.channel_out = (
            nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
            for _ in range(2)
        )

    def position(self, x: torch.Tensor) -> torch.Tensor:
        """Equations 1 and 2: alpha times the values of all positions, weighted by their similarity, plus X."""
        return self.alpha * _taken(self.query(x), self.key(x), self.value(x)) + x

    def channel(self, x: torch.Tensor) -> torch.Tensor:
        """Equations 3 and 4: beta times all channels, weighted by their similarity, plus X."""
        flat = x.flatten(2)
        similarity = torch.softmax(torch.bmm(flat, flat.transpose(1, 2)), dim=2)
        return self.beta * torch.bmm(similarity, flat).view_as(x) + x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X to attended features, B x C x h x w both."""
        return self.position_out(self.position(x)) + self.channel_out(self.channel(x))


class GlobalContext(nn.Module):
    """Global context block (Cao et al. 2019, equation 6): X plus a transformed, attention-pooled context."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // _REDUCTION, 1)
        self.key = nn.Conv2d(channels, 1, 1)
        self.down = nn.Conv2d(channels, inner, 1)
        self.norm = nn.LayerNorm([inner, 1, 1])
        self.up = nn.Conv2d(inner, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X to attended features, B x C x h x w both."""
        weights = torch.softmax(self.key(x).flatten(2), dim=2)
        context = torch.bmm(x.flatten(2), weights.transpose(1, 2)).unsqueeze(3)
        return x + self.up(F.relu(self.norm(self.down(context))))


_MODULES: dict[str, Callable[[int], nn.Module]] = {
    "gated": GatedAttention,
    "spatial": NonLocalAttention,
    "channel": lambda _: TrilinearAttention(),
    "dual": DualAttention,
    "se": partial(ChannelSELayer, 2, r=_REDUCTION),  # squeeze-and-excitation (Hu et al. 2018)
    "gc": GlobalContext,
    "none": lambda _: nn.Identity(),  # a plain backbone, whose own features say where to look again
}
ATTENTIONS = tuple(_MODULES)


def build_attention(name: str, channels: int) -> nn.Module:
    """The module of one of the `ATTENTIONS` for feature maps B x C x h x w; a ValueError if the name is unknown."""
    if name not in _MODULES:
        raise ValueError(f"attention is {name!r}, expected one of {', '.join(ATTENTIONS)}")
    return _MODULES[name](channels)


def attention_map(attended: torch.Tensor) -> torch.Tensor:
    """Mean of the attended features over the channels: B x C x h x w to B x h x w, not negative.

    For the gate this is Omega of equation 2. Modules that add to X can go below 0, which means no attention.
    """
    return attended.float().mean(dim=1).clamp_min(0)
