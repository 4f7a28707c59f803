"""Outputs of a network on a data set."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from monai.networks import eval_mode
from torch import nn


def collect_outputs(
    network: nn.Module,
    loader: Iterable[Any],
    *,
    device: str | torch.device,
    inferer: Callable[..., Any],
    prepare_batch: Callable[..., Any],
    keep: Callable[[Any], Mapping[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Run a network that is on the device over a loader; `inferer` and `prepare_batch` are as of MONAI's engines.

    Returns:
        What `keep` keeps of the output for a batch (tensors by name, the batch first), float32 on the CPU, all images
        in their order.
    """
    kept: dict[str, list[torch.Tensor]] = {}
    with eval_mode(network):
        for batch in loader:
            inputs, _ = prepare_batch(batch, device)
            for name, value in keep(inferer(inputs, network)).items():
                kept.setdefault(name, []).append(value.float().cpu())
    return {name: torch.cat(values) for name, values in kept.items()}
