"""Progress of a training: a bar on a terminal, a line an epoch in the log."""

import logging
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.log import duration

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Progress:
    """Shows how far a run is, and the validation's key metric; `batch_size` is per step and process."""

    validator: Engine
    key_metric: str
    batch_size: int
    bar: tqdm | None = field(default=None, init=False)
    started: float = field(default=0.0, init=False)
    start_epoch: int = field(default=0, init=False)

    def attach(self, engine: Engine) -> None:
        """Register on the trainer, after the validation."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)

    def _start_epoch(self, engine: Engine) -> None:
        if not self.started:
            self.started, self.start_epoch = time.perf_counter(), engine.state.epoch - 1
        if sys.stderr.isatty() and rank_and_size()[0] == 0:
            text = f"epoch {engine.state.epoch}/{engine.state.max_epochs}"
            total = (engine.state.epoch_length or 0) * self.batch_size * rank_and_size()[1]
            self.bar = tqdm(desc=text, total=total, unit="img", leave=False, mininterval=0.5)

    def _iteration(self, engine: Engine) -> None:
        if self.bar is None:
            return
        self.bar.update(self.batch_size * rank_and_size()[1])
        if engine.state.iteration % 20 == 0:
            # Reading the loss waits for the device: seldom enough not to slow it down.
            output: Any = engine.state.output
            self.bar.set_postfix(loss=f"{output['loss'].item():.3f}", refresh=False)

    def _end_epoch(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if rank_and_size()[0] != 0:
            return
        done = engine.state.epoch - self.start_epoch
        epochs_left = (engine.state.max_epochs or engine.state.epoch) - engine.state.epoch
        left = (time.perf_counter() - self.started) / done * epochs_left
        metrics = {**engine.state.metrics, f"val {self.key_metric}": self.validator.state.metrics.get(self.key_metric)}
        terms = [name for name in metrics if name.endswith("_loss")]
        shown = ("loss", *terms, f"val {self.key_metric}", "images_per_second")
        text = ", ".join(f"{n.replace('_', ' ')} {metrics[n]:.4g}" for n in shown if metrics.get(n) is not None)
        logger.info("epoch %d/%d: %s, %s left", engine.state.epoch, engine.state.max_epochs, text, duration(left))
