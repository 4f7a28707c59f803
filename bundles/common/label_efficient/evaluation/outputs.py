"""Outputs of a network on a data set, and what they say of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.networks import eval_mode
from torch import nn
from torch.utils.data import DataLoader

from label_efficient.engine.progress import Bar


@dataclass
class Outcome:
    """What the network says of a section of the data.

    Attributes:
        logits: N x K, or None of a network without classes.
        targets: (N,), or N x K of 0 and 1.
        probabilities: N x K, of the logits at a temperature; empty until then, and without logits.
        uncertainty: (N,) in 0..1.
        own_uncertainty: Whether the uncertainty is the network's own, rather than the entropy of the probabilities.
        found: What else the network says, by name, an image a row.
    """

    logits: torch.Tensor | None
    targets: np.ndarray
    probabilities: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    uncertainty: np.ndarray = field(default_factory=lambda: np.empty(0))
    own_uncertainty: bool = False
    found: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def known(self) -> np.ndarray:
        """Positions of the images with a class."""
        return np.arange(len(self.targets))


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
