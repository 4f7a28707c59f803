"""Handler that reports the loss and its terms over an epoch."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from label_efficient.engine.distributed import rank_and_size


class LossTerms:
    """Means of the loss and of its terms over the images of an epoch, in the engine's metrics.

    `loss`, the terms by name, and in training `images_per_second`.

    Args:
        loss_function: The loss, which keeps its terms as `terms`: scalars by name.
        training: Whether the engine is the trainer. An evaluator computes no loss: the handler does.

    Raises:
        ValueError: At the end of an epoch whose training loss is not finite.
    """

    def __init__(self, loss_function: Any, training: bool = True) -> None:
        self.loss_function = loss_function
        self.training = training
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0
        self.started = 0.0

    def terms(self) -> Mapping[str, torch.Tensor]:
        """Terms of the loss that was computed last, scalars by name."""
        return self.loss_function.terms

    def attach(self, engine: Engine) -> None:
        """Register on a trainer or an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _reset(self, engine: Engine) -> None:
        self.sums, self.count, self.started = {}, 0, time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Add the terms of the batch that has just been computed."""
        output: Any = engine.state.output
        if not self.training:
            with torch.no_grad():
                loss = self.loss_function(output["pred"], output["label"])
        else:
            loss = output["loss"].detach()
        images = len(output["label"])
        for name, value in {"loss": loss, **self.terms()}.items():
            # The sums stay on the device: reading them here would wait for it at every step.
            self.sums[name] = self.sums.get(name, 0) + value.double() * images
        self.count += images

    def _report(self, engine: Engine) -> None:
        if not self.sums:
            return
        sums = torch.stack([*self.sums.values(), next(iter(self.sums.values())).new_tensor(self.count)])
        if rank_and_size()[1] > 1:
            dist.all_reduce(sums)
        values = dict(zip(self.sums, (sums[:-1] / sums[-1]).tolist(), strict=True))
        if self.training and not math.isfinite(values["loss"]):
            raise ValueError(
                f"training diverged: the loss is {values['loss']} in epoch {engine.state.epoch}; try a smaller "
                "learning_rate"
            )
        engine.state.metrics.update(values)
        if self.training:
            seconds = time.perf_counter() - self.started
            engine.state.metrics["images_per_second"] = float(sums[-1]) / seconds
