"""Ignite handlers that every bundle attaches."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from label_efficient.engine.distributed import rank_and_size


class OutputAsList:
    """Hands the output of a training step on as a list of one dictionary, as MONAI has it after decollating.

    For handlers that consumers append to the trainer's: MONAI's experiment tracking reads the loss of a list
    only. The last of the bundle's own handlers.
    """

    def attach(self, engine: Engine) -> None:
        """Register on the trainer, after the handlers that read the output."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Wrap the output."""
        output: Any = engine.state.output
        engine.state.output = [output]  # type: ignore[assignment]


@dataclass(eq=False)
class BuffersOfFirstRank:
    """Before an evaluation gives all processes the batch statistics of rank 0, whose weights are shipped.

    The network is evaluated without its distributed wrapper: that one exchanges buffers in every forward pass, and
    waits for ever where one process has a batch more than another.
    """

    network: torch.nn.Module

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Exchange them."""
        if rank_and_size()[1] > 1:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)
