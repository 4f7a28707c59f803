"""The network as it is shipped, run on data: logits, probabilities and uncertainty."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from label_efficient.data.class_lists import MULTI_LABEL
from label_efficient.engine.autocast import AutocastInferer
from label_efficient.evaluation.outputs import collect_outputs
from label_efficient.evaluation.predictions import normalised_entropy
from label_efficient.networks.backbones import build_backbone, check_image_size
from label_efficient.networks.model_info import network_arguments

from .network import LSANet, NodeEnsemble, ensemble


def build_shipped(info: Mapping[str, Any], **changes: Any) -> nn.Module:
    """The network that `model.pt` has the weights of: image B x 3 x H x W to logits B x K.

    The backbone with its classifier C4, as fast as a plain one; with `keep_nodes` the ensemble of all nodes. Arguments
    as of `model_info.network_arguments`; `info` has `task` and `keep_nodes` too.
    """
    arguments = network_arguments(LSANet, info, changes)
    if info["keep_nodes"]:
        return NodeEnsemble(multi_label=info["task"] == MULTI_LABEL, **arguments)
    check_image_size(arguments["backbone"], arguments["image_size"])
    return build_backbone(arguments["backbone"], arguments["num_classes"], attention=arguments["attention"])


def shipped_weights(training_weights: Mapping[str, torch.Tensor], keep_nodes: bool) -> dict[str, torch.Tensor]:
    """Weights of the shipped network out of those of the trained `network.LSANet`."""
    if keep_nodes:
        return dict(training_weights)
    prefix = "backbone."
    return {k[len(prefix) :]: v for k, v in training_weights.items() if k.startswith(prefix)}


class NodeInferer(AutocastInferer):
    """Runs a shipped network, in half precision if asked for; of a `NodeEnsemble` it keeps the nodes' disagreement."""

    def __init__(self, *, amp: bool | str = False) -> None:
        super().__init__(amp=amp)
        self.disagreement: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """Image B x 3 x H x W to logits B x K."""
        self.disagreement = None
        if not isinstance(network, NodeEnsemble):
            return super().__call__(inputs, network, *args, **kwargs)
        probabilities, weights = super().__call__(inputs, network.node_probabilities)
        self.disagreement = node_disagreement(probabilities, weights, network.multi_label)
        return network.logits_of(ensemble(probabilities, weights))


def node_disagreement(probabilities: torch.Tensor, weights: torch.Tensor, multi_label: bool = False) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence of the nodes' predictions, in 0 (they agree) to 1.

    H(sum_l w_l p_l) - sum_l w_l H(p_l), the entropies over log K; for multi-label the mean over the labels. From
    probabilities B x L x K and weights B x L, whose rows sum to 1, to (B,).
    """
    joint = normalised_entropy(ensemble(probabilities, weights), multi_label)
    own = normalised_entropy(probabilities, multi_label)
    return (joint - (weights * own).sum(dim=1)).clamp(0, 1)


def predict(
    network: nn.Module, loader: DataLoader[Any], *, prepare_batch: Callable[..., Any], device: Any, amp: bool | str
) -> dict[str, torch.Tensor]:
    """Run a shipped network over a loader: `logits` N x K, with kept nodes also `uncertainty` (N,), on the CPU."""
    inferer = NodeInferer(amp=amp)

    def keep(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": logits} | ({} if inferer.disagreement is None else {"uncertainty": inferer.disagreement})

    return collect_outputs(
        network.to(device), loader, device=device, inferer=inferer, prepare_batch=prepare_batch, keep=keep
    )
