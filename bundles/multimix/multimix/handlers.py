"""Ignite handlers of MultiMix: the terms of the loss over an epoch."""

import math
import time
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from label_efficient.engine.distributed import rank_and_size

_COUNTS = ("pseudo_label_known", "pseudo_label_correct")


class LossTerms:
    """Means of the loss and of its terms over the steps of an epoch, in the engine's metrics.

    `loss`, the terms of `losses.MultiMixLoss`, `pseudo_label_accuracy` (of the pseudo-labels above the threshold whose
    class is known, where there is any) and `images_per_second`.

    Raises:
        ValueError: At the end of an epoch whose loss is not finite.
    """

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = 0
        self.images = 0
        self.started = 0.0

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _reset(self, engine: Engine) -> None:
        self.sums, self.steps, self.images, self.started = (
            defaultdict(lambda: torch.zeros(())),
            0,
            0,
            time.perf_counter(),
        )

    def __call__(self, engine: Engine) -> None:
        """Add the terms of the step that has just been computed."""
        output: Any = engine.state.output
        for name, value in {"loss": output["loss"], **output["terms"]}.items():
            # The sums stay on the device: reading them here would wait for it at every step.
            self.sums[name] = self.sums[name].to(value.device) + value.float()
        self.steps += 1
        self.images += output["num_images"]

    def _report(self, engine: Engine) -> None:
        names = sorted(self.sums)
        sums = torch.stack([self.sums[name] for name in names]).double()
        ranks = rank_and_size()[1]
        if ranks > 1:
            dist.all_reduce(sums)
        values = dict(zip(names, sums.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise ValueError(
                f"training diverged: the loss is {values['loss']} in epoch {engine.state.epoch}; try a smaller "
                "learning_rate"
            )
        counts = {name: values.pop(name) for name in _COUNTS if name in values}
        engine.state.metrics.update({name: value / (self.steps * ranks) for name, value in values.items()})
        if counts.get("pseudo_label_known"):
            accuracy = counts["pseudo_label_correct"] / counts["pseudo_label_known"]
            engine.state.metrics["pseudo_label_accuracy"] = accuracy
        seconds = time.perf_counter() - self.started
        engine.state.metrics["images_per_second"] = self.images * ranks / seconds
