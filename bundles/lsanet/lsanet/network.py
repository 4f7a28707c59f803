"""The networks that are trained (all output nodes) and those that are shipped (C4 alone, or the ensemble)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from label_efficient.networks.backbones import NODES, build_backbone, check_image_size
from label_efficient.networks.first_weights import WeightParts
from label_efficient.networks.model_info import network_arguments
from label_efficient.options import one_of

from .layer_attention import LayerSelectiveAttention

METHODS = ("baseline", "dsn", "dks", "dsn_ks", "dsn_lsa", "lsanet")
METHODS_WITH_LSA = ("dsn_lsa", "lsanet")
METHODS_WITH_SYNERGY = ("dks", "dsn_ks", "lsanet")


class LSANet(nn.Module):
    """Backbone with auxiliary classifiers and, where the method has it, layer selective attention.

    Args:
        method: One of `METHODS`. "baseline": C4 alone. "dsn", "dsn_ks": auxiliary classifiers. "dks":
            auxiliary branches that repeat the remaining stages. "dsn_lsa", "lsanet": with beta.
        backbone: One of `backbones.BACKBONES`.
        image_size: Pixels a side of the images it will be given; only checked.
        attention: Attention module in the residual blocks, one of `block_attention.ATTENTIONS`.
        output_nodes: Which of C1..C3 have an auxiliary classifier, and C4.
        lsa: With `lsa_temperature` and `embed_channels` as of `LayerSelectiveAttention`.

    Raises:
        ValueError: If a name is unknown or the combination makes no sense.
    """

    weight_parts = WeightParts(
        core="backbone.",
        classifiers=("backbone.fc.", "backbone.class_layers.out.", "heads."),
        optional=("lsa.", "tails."),
        same="backbone and attention (and for the weights of all nodes output_nodes and lsa)",
        core_alone=True,
    )

    def __init__(
        self,
        *,
        method: str = "lsanet",
        backbone: str = "resnet18",
        num_classes: int = 2,
        image_size: int = 224,
        attention: str = "none",
        output_nodes: Sequence[str] = NODES,
        lsa: str = "fc_r8",
        lsa_temperature: float = 1.0,
        embed_channels: int = 64,
    ) -> None:
        super().__init__()
        self.nodes = check_nodes(method, output_nodes)
        check_image_size(backbone, image_size)
        self.method = method
        self.backbone = build_backbone(backbone, num_classes, attention=attention)
        channels = self.backbone.node_channels
        auxiliary = self.nodes[:-1]
        self.tails: nn.ModuleList | None = None
        if method == "dks":
            # Repeated stages with weights of their own, from a second backbone of the same kind.
            twins = [build_backbone(backbone, num_classes, attention=attention) for _ in auxiliary]
            self.tails = nn.ModuleList(twin.tail(node) for twin, node in zip(twins, auxiliary, strict=True))
        head_channels = [channels[-1] if method == "dks" else channels[node] for node in auxiliary]
        self.heads = nn.ModuleList(_Head(c, num_classes) for c in head_channels)
        self.lsa: LayerSelectiveAttention | None = None
        if method in METHODS_WITH_LSA:
            self.lsa = LayerSelectiveAttention(
                [channels[node] for node in self.nodes],
                [2 ** (len(NODES) - 1 - node) for node in self.nodes],
                variant=lsa,
                embed_channels=embed_channels,
                temperature=lsa_temperature,
            )
        self.register_load_state_dict_pre_hook(_accept_backbone)

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of the L output nodes, shallow to deep, e.g. ("C1", "C2", "C3", "C4")."""
        return tuple(NODES[node] for node in self.nodes)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Image B x 3 x H x W to `logits` (B x K, node C4) and, where the method has them, the following.

        `aux_logits` (B x (L-1) x K, shallow to deep), `beta` (B x L, rows sum to 1) and `gate` (B x L).
        """
        feature_maps = self.backbone.forward_nodes(x)
        output = {"logits": self.backbone.classify(feature_maps[-1])}
        auxiliary = [feature_maps[node] for node in self.nodes[:-1]]
        if self.tails is not None:
            auxiliary = [tail(m) for tail, m in zip(self.tails, auxiliary, strict=True)]
        if auxiliary:
            logits = [head(m) for head, m in zip(self.heads, auxiliary, strict=True)]
            output["aux_logits"] = torch.stack(logits, dim=1)
        if self.lsa is not None:
            output["beta"], output["gate"] = self.lsa([feature_maps[node] for node in self.nodes])
        return output


def build_network(info: Mapping[str, Any], **changes: Any) -> LSANet:
    """The network that a description has the arguments of, see `model_info.network_arguments`."""
    return LSANet(**network_arguments(LSANet, info, changes))


def _accept_backbone(network: nn.Module, weights: dict[str, torch.Tensor], prefix: str, *_) -> None:
    """Take the shipped weights for those of the backbone: MONAI Label loads them to go on training."""
    inner = f"{prefix}backbone."
    if not any(name.startswith(inner) for name in weights):
        for name in [n for n in weights if n.startswith(prefix)]:
            weights[inner + name[len(prefix) :]] = weights.pop(name)


class NodeEnsemble(LSANet):
    """All nodes of an `LSANet`, whose weights it takes: their probabilities weighted by beta (equally without LSA)."""

    def __init__(self, *, multi_label: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        if len(self.nodes) < 2:
            raise ValueError(f"keep_nodes needs more than one output node, and output_nodes is {list(self.node_names)}")
        self.multi_label = multi_label

    def node_probabilities(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image B x 3 x H x W to the nodes' probabilities B x L x K and their weights B x L."""
        return node_probabilities(super().forward(x), self.multi_label)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Image B x 3 x H x W to logits B x K, whose softmax (sigmoid) is the weighted mean of the nodes."""
        return self.logits_of(ensemble(*self.node_probabilities(x)))

    def logits_of(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Probabilities B x K to logits that have them as their softmax or sigmoid."""
        smallest = torch.finfo(probabilities.dtype)
        if self.multi_label:
            return torch.logit(probabilities, eps=smallest.eps)
        return probabilities.clamp_min(smallest.tiny).log()


def node_probabilities(output: dict[str, torch.Tensor], multi_label: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of `LSANet` to the nodes' probabilities B x L x K and their weights B x L: beta, or all the same."""
    logits = torch.cat([output["aux_logits"], output["logits"].unsqueeze(1)], dim=1)
    equal = torch.full_like(logits[:, :, 0], 1 / logits.shape[1])
    probabilities = torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=2)
    return probabilities, output.get("beta", equal)


def ensemble(probabilities: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the nodes: B x L x K probabilities and B x L weights to B x K."""
    return (probabilities * weights.unsqueeze(2)).sum(dim=1)


def check_nodes(method: str, output_nodes: Sequence[str]) -> tuple[int, ...]:
    """Places of the output nodes of a method, shallow to deep; a ValueError if it cannot have them."""
    one_of("method", method, METHODS)
    names = list(output_nodes)
    if unknown := [n for n in names if n not in NODES]:
        raise ValueError(f"output_nodes has {unknown}, expected names out of {', '.join(NODES)}")
    if len(set(names)) != len(names) or "C4" not in names:
        raise ValueError(f"output_nodes is {names}: expected C4 and any of C1, C2, C3, each once")
    if method == "baseline" and names != ["C4"]:
        allowed = "use ['C4'], or method='dsn'"
        raise ValueError(f"method='baseline' has the classifier C4 alone, and output_nodes is {names}: {allowed}")
    if method == "dks" and set(names) != {"C2", "C3", "C4"}:
        raise ValueError(f"method='dks' has branches at C2 and C3 beside C4, and output_nodes is {names}")
    if method != "baseline" and len(names) == 1:
        raise ValueError(f"method={method!r} needs an auxiliary node beside C4: add C1, C2 or C3 to output_nodes")
    return tuple(sorted(NODES.index(n) for n in names))


class _Head(nn.Module):
    """Global average pooling and one linear layer: B x C x H x W to B x K."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.fc(feature_map.mean(dim=(2, 3)))
