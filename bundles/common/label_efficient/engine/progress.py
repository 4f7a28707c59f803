"""How far a run is, and how long it will take: a bar on a terminal, a line now and then in a log."""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.log import duration

logger = logging.getLogger(__name__)

FIRST_LINE, NEXT_LINES = 5.0, 60.0  # seconds after which a log says how far it is
EVALUATED = ("val", "test", "cross_domain")  # sections of the data that the evaluation after a training goes through


class Bar:
    """Images done of `total`; `left` estimates the seconds of the whole run that remain, where there is more of it.

    Without an estimate (None) yet, a log gets no line.
    """

    def __init__(self, text: str, total: int, left: Callable[[], float | None] | None = None, wait: float = FIRST_LINE):
        self.text, self.total, self.left, self.done = text, total, left, 0
        self.started = time.perf_counter()
        self.due = self.started + wait
        self.shown = rank_and_size()[0] == 0
        self.bar: tqdm | None = None
        if self.shown and sys.stderr.isatty():
            self.bar = tqdm(desc=text, total=total, unit="img", leave=False, mininterval=0.5)

    def to(self, done: int, **also: str) -> None:
        """So many images are done, in all; `also` is shown on a terminal beside it."""
        new, self.done = done - self.done, done
        if self.bar is not None:
            self.bar.set_postfix(also | ({} if self.left is None else {"run": self._left()}), refresh=False)
            self.bar.update(new)
        elif self.shown and done < self.total and time.perf_counter() >= self.due and (left := self._left()):
            self.due = time.perf_counter() + NEXT_LINES
            logger.info("%s: %d of %d images, %s", self.text, done, self.total, left)

    def _left(self) -> str:
        if self.left is not None:
            seconds = self.left()
            return "" if seconds is None else f"{duration(seconds)} left in all"
        used = time.perf_counter() - self.started
        return f"{duration(used / max(self.done, 1) * (self.total - self.done))} left"

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


@dataclass(eq=False)
class Progress:
    """Shows how far a training is, and the validation's key metric; `batch_size` is per step and process.

    What is left counts the validations and the evaluation of `data` after the training, too.
    """

    validator: Engine
    key_metric: str
    batch_size: int
    data: Any
    bar: Bar | None = field(default=None, init=False)
    loss: str = field(default="", init=False)
    mark: float = field(default=0.0, init=False)
    start_epoch: int = field(default=-1, init=False)
    steps: int = field(default=0, init=False)
    step_seconds: float = field(default=0.0, init=False)
    validations: int = field(default=0, init=False)
    image_seconds: float = field(default=0.0, init=False)  # of one image in validation

    def attach(self, engine: Engine) -> None:
        """Register on the trainer, after the validation."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        self.validator.add_event_handler(Events.STARTED, self._start_validation)
        self.validator.add_event_handler(Events.ITERATION_COMPLETED, self._validate)
        self.validator.add_event_handler(Events.COMPLETED, self._end_validation)

    def _start_epoch(self, engine: Engine) -> None:
        first = self.start_epoch < 0
        if first:
            self.start_epoch = engine.state.epoch - 1
        self.mark = time.perf_counter()
        text = f"epoch {engine.state.epoch}/{engine.state.max_epochs}"
        total = (engine.state.epoch_length or 0) * self._images_per_step()
        self.bar = Bar(text, total, partial(self._estimate, engine), FIRST_LINE if first else NEXT_LINES)

    def _images_per_step(self) -> int:
        return self.batch_size * rank_and_size()[1]

    def _iteration(self, engine: Engine) -> None:
        now = time.perf_counter()
        if self.steps <= 1:
            self.step_seconds = 0.0
        self.steps += 1
        self.step_seconds += now - self.mark
        self.mark = now
        if self.bar is not None:
            if self.bar.bar is not None and engine.state.iteration % 20 == 0:
                # Reading the loss waits for the device: seldom enough not to slow it down.
                output: Any = engine.state.output
                self.loss = f"{output['loss'].item():.3f}"
            done = self.bar.done + self._images_per_step()
            self.bar.to(done, **({"loss": self.loss} if self.loss else {}))

    def _estimate(self, engine: Engine) -> float | None:
        # The first step of all is slower than any other, and says nothing of them.
        return self._left(engine) if self.steps > 1 else None

    def _left(self, engine: Engine) -> float:
        """Seconds for the steps that remain, the validations and the evaluation."""
        state, ranks = engine.state, rank_and_size()[1]
        epochs = state.max_epochs or state.epoch
        step = self.step_seconds / max(self.steps - 1, 1)
        # Until it is measured: an image without gradients takes a third of one with them.
        image = self.image_seconds or step / self.batch_size / 3
        finished = state.iteration // (state.epoch_length or 1)
        often = self.validations / max(finished - self.start_epoch, 1) if self.validations else 1
        validated = often * (epochs - finished) * len(self.data.splits["val"]) / ranks
        evaluated = sum(len(part) for name, part in self.data.splits.items() if name in EVALUATED)
        return step * (epochs * (state.epoch_length or 0) - state.iteration) + image * (validated + evaluated)

    def _start_validation(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = Bar("validation", len(self.data.splits["val"]))

    def _validate(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.to(self.bar.total * engine.state.iteration // (engine.state.epoch_length or 1))

    def _end_validation(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
            self.validations += 1
            seconds = time.perf_counter() - self.bar.started
            self.image_seconds = seconds * rank_and_size()[1] / max(self.bar.total, 1)

    def _end_epoch(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if rank_and_size()[0] != 0:
            return
        metrics = {**engine.state.metrics, f"val {self.key_metric}": self.validator.state.metrics.get(self.key_metric)}
        terms = [name for name in metrics if name.endswith("_loss")]
        shown = ("loss", *terms, f"val {self.key_metric}", "images_per_second")
        text = ", ".join(f"{n.replace('_', ' ')} {metrics[n]:.4g}" for n in shown if metrics.get(n) is not None)
        left = duration(self._left(engine))
        logger.info("epoch %d/%d: %s, %s left", engine.state.epoch, engine.state.max_epochs, text, left)
