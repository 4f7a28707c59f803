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
    """Means of the loss and of its terms over an epoch, in the engine's metrics.

    `loss`, the terms by name, and in training `images_per_second`. The means are over the images; over the steps where
    an engine's output has `num_images`, those of all the streams that the step drew from.

    Args:
        loss_function: The loss, which keeps its terms as `terms`: scalars by name. It may name ratios of counts among
            them as `ratios`, each by a pair of terms: they are formed over the whole epoch, where there is any count.
        training: Whether the engine is the trainer. An evaluator computes no loss: the handler does.

    Raises:
        ValueError: At the end of an epoch whose training loss is not finite.
    """

    def __init__(self, loss_function: Any, training: bool = True) -> None:
        self.loss_function = loss_function
        self.training = training
        self.ratios: Mapping[str, tuple[str, str]] = getattr(loss_function, "ratios", {})
        self.sums: dict[str, torch.Tensor] = {}
        self.by_step, self.weight, self.images, self.started = False, 0, 0, 0.0

    def attach(self, engine: Engine) -> None:
        """Register on a trainer or an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _reset(self, engine: Engine) -> None:
        self.sums, self.weight, self.images, self.started = {}, 0, 0, time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Add the terms of the batch that has just been computed."""
        output: Any = engine.state.output
        if not self.training:
            with torch.no_grad():
                loss = self.loss_function(output["pred"], output["label"])
        else:
            loss = output["loss"].detach()
        self.by_step = "num_images" in output
        images = output["num_images"] if self.by_step else len(output["label"])
        for name, value in {"loss": loss, **self.loss_function.terms}.items():
            # The sums stay on the device: reading them here would wait for it at every step.
            self.sums[name] = self.sums.get(name, 0) + (value.float() if self.by_step else value.double() * images)
        self.weight += 1 if self.by_step else images
        self.images += images

    def _report(self, engine: Engine) -> None:
        if not self.sums:
            return
        # Where the streams of a step decide which terms it has, ranks may meet them in another order.
        names = sorted(self.sums) if self.by_step else list(self.sums)
        sums = torch.stack([self.sums[name].double() for name in names])
        sums = torch.cat([sums, sums.new_tensor([self.weight, self.images])])
        if rank_and_size()[1] > 1:
            dist.all_reduce(sums)
        *values, weight, images = sums.tolist()
        totals = dict(zip(names, values, strict=True))
        if self.training and not math.isfinite(totals["loss"]):
            raise ValueError(
                f"training diverged: the loss is {totals['loss']} in epoch {engine.state.epoch}; try a smaller "
                "learning_rate"
            )
        counts = {name for pair in self.ratios.values() for name in pair}
        metrics = engine.state.metrics
        metrics.update({name: total / weight for name, total in totals.items() if name not in counts})
        metrics.update({name: totals[a] / totals[b] for name, (a, b) in self.ratios.items() if totals.get(b)})
        if self.training:
            metrics["images_per_second"] = images / (time.perf_counter() - self.started)
