"""Outputs of a network on a data set."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.networks import eval_mode
from torch import nn
from torch.utils.data import DataLoader

from label_efficient.engine.progress import Bar


def collect_outputs(
    network: nn.Module,
    loader: DataLoader[Any],
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
    bar = Bar("evaluation", len(loader.dataset))  # type: ignore[arg-type]
    with eval_mode(network):
        for batch in loader:
            inputs, _ = prepare_batch(batch, device)
            for name, value in keep(inferer(inputs, network)).items():
                kept.setdefault(name, []).append(value.float().cpu())
            bar.to(sum(map(len, next(iter(kept.values())))))
    bar.close()
    return {name: torch.cat(values) for name, values in kept.items()}
