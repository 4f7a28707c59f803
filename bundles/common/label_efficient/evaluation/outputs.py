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
    """Run a network over a loader, and keep what it says.

    Args:
        network: On the device.
        loader: Of batches.
        device: Where to compute.
        inferer: As of MONAI's engines.
        prepare_batch: The same.
        keep: The network's output for a batch to what is kept of it: tensors by name, the batch first.

    Returns:
        By name, float32 on the CPU, all images in their order.
    """
    kept: dict[str, list[torch.Tensor]] = {}
    with eval_mode(network):
        for batch in loader:
            inputs, _ = prepare_batch(batch, device)
            for name, value in keep(inferer(inputs, network)).items():
                kept.setdefault(name, []).append(value.float().cpu())
    return {name: torch.cat(values) for name, values in kept.items()}
