"""Feature embedding and layer selective attention: beta, a weight per output node and image (equation 6)."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from label_efficient.options import one_of

LSA_VARIANTS = ("fc_r4", "fc_r8", "fc_r16", "conv_k3", "conv_k5", "conv_k7", "gated", "self_attention")


class LayerSelectiveAttention(nn.Module):
    """beta = softmax over the L nodes of their gates.

    The feature maps of the L nodes are embedded to one shape B x C x H x W, average-pooled and concatenated
    to B x LC; the chosen variant (Table 2 of the paper) turns that into one gate per node.

    Args:
        node_channels: Channels of the L feature maps, shallow to deep.
        node_strides: Downsampling of the deepest map relative to each, e.g. (8, 4, 2, 1).
        variant: One of `LSA_VARIANTS`; "fc_r8" is the paper's best.
        embed_channels: C, the common number of channels.
        temperature: The gates are divided by it before the softmax. 1 is the paper's form, where a gate is
            a mean of sigmoids, so that no beta is more than e times another.

    Raises:
        ValueError: If the variant is unknown or the temperature is not positive.
    """

    def __init__(
        self,
        node_channels: Sequence[int],
        node_strides: Sequence[int],
        *,
        variant: str = "fc_r8",
        embed_channels: int = 64,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        one_of("lsa", variant, LSA_VARIANTS)
        if temperature <= 0:
            raise ValueError(f"lsa_temperature is {temperature}, expected a number above 0")
        self.temperature = temperature
        self.embeddings = nn.ModuleList(
            _embedding(channels, stride, embed_channels)
            for channels, stride in zip(node_channels, node_strides, strict=True)
        )
        self.gate = _build_gate(variant, len(node_channels), embed_channels)

    def embed(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """L maps of any shape to B x L x C x H x W, H x W being the size of the deepest map."""
        height, width = size = feature_maps[-1].shape[-2:]
        embedded = [embedding(m) for embedding, m in zip(self.embeddings, feature_maps, strict=True)]
        # Poolings that round down leave the deepest map a row short of the strided convolutions' output.
        fit = [e if e.shape[-2:] == size else F.adaptive_avg_pool2d(e, (height, width)) for e in embedded]
        return torch.stack(fit, dim=1)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """L feature maps to beta (B x L, rows sum to 1) and the gates it is the softmax of (B x L)."""
        descriptor = self.embed(feature_maps).mean(dim=(3, 4))  # B x L x C
        gate = self.gate(descriptor)
        # In half precision the rows of beta would not sum to 1.
        gate = gate.to(torch.promote_types(gate.dtype, torch.float32))
        return torch.softmax(gate / self.temperature, dim=1), gate


def largest_ratio(variant: str, temperature: float) -> float | None:
    """How many times another beta one can be: gates are means of sigmoids, between 0 and 1; None if without bound."""
    return None if variant == "gated" else math.exp(1 / temperature)


def _embedding(channels: int, stride: int, embed_channels: int) -> nn.Sequential:
    # The strided convolution's kernel shrinks with depth (9, 5, 3, 1 for strides 8, 4, 2, 1).
    kernel_size = stride + 1 if stride > 1 else 1
    return nn.Sequential(
        nn.Conv2d(channels, embed_channels, kernel_size, stride, padding=kernel_size // 2),
        nn.Conv2d(embed_channels, embed_channels, 1),
    )


def _build_gate(variant: str, num_nodes: int, channels: int) -> nn.Module:
    if variant == "gated":
        return _GatedGate(channels)
    if variant == "self_attention":
        return _SelfAttentionGate(channels)
    kind, number = variant.split("_")
    if kind == "fc":
        return _FullyConnectedGate(num_nodes * channels, reduction=int(number[1:]))
    return _ConvolutionGate(kernel_size=int(number[1:]))


class _FullyConnectedGate(nn.Module):
    """Mean over each node's channels of sigmoid(W2 relu(W1 u)), W1 being LC/r x LC (equation 6)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Linear(channels, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels, bias=False)

    def forward(self, descriptor: torch.Tensor) -> torch.Tensor:
        attention = torch.sigmoid(self.fc2(torch.relu(self.fc1(descriptor.flatten(1)))))
        return attention.view_as(descriptor).mean(dim=2)


class _ConvolutionGate(nn.Module):
    """Mean over each node's channels of sigmoid(conv1d(u)), one kernel over the LC channels (ECA style)."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, descriptor: torch.Tensor) -> torch.Tensor:
        attention = torch.sigmoid(self.conv(descriptor.flatten(1).unsqueeze(1)))
        return attention.view_as(descriptor).mean(dim=2)


class _GatedGate(nn.Module):
    """w (tanh(V u_l) * sigmoid(U u_l)) for every node l, as in attention-based MIL (Ilse et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tanh_branch = nn.Linear(channels, channels)
        self.sigmoid_branch = nn.Linear(channels, channels)
        self.score = nn.Linear(channels, 1, bias=False)

    def forward(self, descriptor: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.tanh_branch(descriptor)) * torch.sigmoid(self.sigmoid_branch(descriptor))
        return self.score(hidden).squeeze(2)


class _SelfAttentionGate(nn.Module):
    """Mean over channels of the sigmoid of scaled dot-product self-attention over the L nodes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, num_heads=1, batch_first=True)

    def forward(self, descriptor: torch.Tensor) -> torch.Tensor:
        attended, _ = self.attention(descriptor, descriptor, descriptor, need_weights=False)
        return torch.sigmoid(attended).mean(dim=2)
