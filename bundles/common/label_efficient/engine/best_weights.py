"""The weights of the best epoch, and the end of a run that no longer gets better."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from label_efficient.engine.distributed import rank_and_size
from label_efficient.networks.weights import save_model
from label_efficient.run_folder import RunFolder

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class BestWeights:
    """Writes `model.pt`, with `model.json` beside it, after every validation that is better than all before.

    Against the weights that the training started from, judged as epoch 0, an accuracy that has fallen is not better
    either: on few images the metric that chooses is soon at its limit.

    Args as of `records.RunRecord`; `shipped` is the module whose weights they are, `images` what it is trained on (see
    `seen_images`). The run stops after
    `early_stop_patience` validations without a better one; never with 0.

    Raises:
        ValueError: At the end of an epoch whose metric is not finite.
    """

    run_folder: RunFolder
    shipped: torch.nn.Module
    validator: Engine
    key_metric: str
    model_info: Mapping[str, Any]
    early_stop_patience: int
    val_interval: int
    images: np.ndarray | None = None
    best: float | None = field(default=None, init=False)
    without_improvement: int = field(default=0, init=False)
    first_accuracy: float | None = field(default=None, init=False)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, how many validations ago it was, and the accuracy of the weights at the start."""
        return {name: getattr(self, name) for name in ("best", "without_improvement", "first_accuracy")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.best, self.without_improvement = state["best"], state["without_improvement"]
        self.first_accuracy = state.get("first_accuracy")

    def attach(self, engine: Engine) -> None:
        """Register on the trainer, after the validation."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Judge the epoch that has just ended."""
        if engine.state.epoch % self.val_interval:
            return
        value = float(self.validator.state.metrics[self.key_metric])
        if not math.isfinite(value):
            epoch = engine.state.epoch
            raise ValueError(f"validation {self.key_metric} is {value} in epoch {epoch}: training diverged")
        accuracy = self.validator.state.metrics.get("acc")
        if engine.state.epoch == 0:
            self.first_accuracy = accuracy
        worse = accuracy is not None and self.first_accuracy is not None and accuracy < self.first_accuracy
        if self.best is not None and (value <= self.best or worse):
            self.without_improvement += 1
            if self.stops(engine):
                text = "no better validation %s %d times: stopping early"
                logger.info(text, self.key_metric, self.without_improvement)
            return
        self.best, self.without_improvement = value, 0
        if rank_and_size()[0] == 0:
            # A temperature fitted to other weights would go on changing the probabilities of these.
            weights = self.run_folder.weights
            weights.forget("calibration.json")
            info = {**self.model_info, "best_epoch": engine.state.epoch, f"val_{self.key_metric}": value}
            weights.file("model.json")
            weights.file("model.images.npy")
            save_model(weights.file("model.pt"), self.shipped.state_dict(), info, self.images)
            self.run_folder.complete()

    def stops(self, engine: Engine) -> bool:
        """End the run if it has not got better for long enough; also one that is resumed where it had ended."""
        due = self.early_stop_patience > 0 and self.without_improvement >= self.early_stop_patience
        if due:
            engine.terminate()
        return due
