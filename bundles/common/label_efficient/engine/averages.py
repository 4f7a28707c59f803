"""The moving average of a network's weights."""

from dataclasses import dataclass

import torch
from ignite.engine import Engine, Events
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(network: torch.nn.Module, decay: float) -> AveragedModel | None:
    """Exponential moving average of a network's weights, or None where the decay is 0.

    It begins with the weights after the first step. (Ignite's `EMAHandler` begins with the random ones before it.)
    """
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


@dataclass(eq=False)
class MovingAverage:
    """Takes the weights of the network, not wrapped, into their `moving_average` after every step."""

    average: AveragedModel | None
    network: torch.nn.Module

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        if (average := self.average) is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: average.update_parameters(self.network))
