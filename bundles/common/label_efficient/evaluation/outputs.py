"""Outputs of a network on a data set."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
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

    def collect(engine: Engine) -> None:
        output: Any = engine.state.output
        for name, value in keep(output["pred"]).items():
            kept.setdefault(name, []).append(value.float().cpu())

    evaluator = SupervisedEvaluator(
        device=torch.device(device),
        val_data_loader=loader,
        network=network,
        inferer=inferer,  # type: ignore[arg-type]
        prepare_batch=prepare_batch,
        decollate=False,
    )
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, collect)
    evaluator.run()
    return {name: torch.cat(values) for name, values in kept.items()}
