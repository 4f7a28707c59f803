"""What a training step needs, said before the first one, and refused where no machine of this size has it."""

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from label_efficient.engine.autocast import half_precision
from label_efficient.engine.distributed import rank_and_size
from label_efficient.settings import SettingsError

logger = logging.getLogger(__name__)

_GIB = 2**30
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class StepCost:
    """Logs the least memory and the arithmetic of a training step, and raises a SettingsError where memory lacks.

    Args:
        parts: Networks, or the largest parts of them, each with the shape of its input. A part that a method lacks is
            None.
        settings: What the shapes come from, by name: what could be smaller.
        device: Of the training.
        amp: As of `autocast.half_precision`.
    """

    def __init__(
        self,
        *,
        parts: Iterable[tuple[nn.Module | None, tuple[int, ...]]],
        settings: Mapping[str, Any],
        device: str | torch.device,
        amp: bool | str = False,
    ) -> None:
        self.parts = [(network, shape) for network, shape in parts if network is not None]
        self.settings, self.device = settings, torch.device(device)
        self.share = 0.5 if half_precision(amp, device) else 1.0  # of the activations

    def attach(self, engine: Engine) -> None:
        """Register on the trainer, before the handler that writes its files."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Judge the step."""
        kept, flops = (sum(figures) for figures in zip(*(forward_cost(*part) for part in self.parts), strict=True))
        weights = sum(p.numel() * p.element_size() for network, _ in self.parts for p in network.parameters())
        needed = (kept * self.share + 3 * weights) / _GIB  # beside the weights their gradients, and what they change by
        there = device_memory(self.device) / _GIB
        if needed > there:
            given = ", ".join(f"{name}={value}" for name, value in self.settings.items())
            raise SettingsError(
                f"{given}: a training step needs {needed:,.0f} GiB of memory at least, and {self.device} has "
                f"{there:,.0f}; give smaller ones"
            )
        if rank_and_size()[0] == 0:
            text = "cost: %s epochs of %s steps; a step has %.3g GFLOP and needs at least %.2g GiB of memory"
            logger.info(text, engine.state.max_epochs, engine.state.epoch_length, 3 * flops / 1e9, needed)


def forward_cost(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward one, and its floating point operations.

    Nothing is computed: the pass is made with tensors that have shapes alone.
    """
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    named = dict(network.named_parameters()) | dict(network.named_buffers())
    state = {k: torch.empty_like(v, device="meta").requires_grad_(v.requires_grad) for k, v in named.items()}
    was_training = network.training
    network.train()
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        output = functional_call(network, state, (torch.empty(shape, device="meta"),))
    network.train(was_training)
    del output  # until here it has held what was kept, so that no place was used twice
    return sum(kept.values()), counter.get_total_flops()


def device_memory(device: torch.device) -> int:
    """Bytes of memory that a device has; of a CPU what the machine has, or a container may take."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    found = [2**63]
    with suppress(AttributeError, ValueError, OSError):  # not on every system
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in map(Path, _CGROUPS):
        with suppress(ValueError, OSError):  # "max": none
            found.append(int(limit.read_text()))
    return min(found)
