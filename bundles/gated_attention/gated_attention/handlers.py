"""What the training of the gated attention bundle needs beside the network: lambda, and the inferer that heeds it."""

import logging
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import ParamSchedulerHandler

from label_efficient.engine.autocast import AutocastInferer

from .losses import GatedAttentionLoss, lambda_at

logger = logging.getLogger(__name__)


class LambdaDecay(ParamSchedulerHandler):
    """Sets the loss's lambda at the start of every epoch, and records it as the metric `lambda`.

    It depends on the number of the epoch alone, so that a resumed run has the same lambda as one without a break.

    Args:
        loss: Whose `lambda_` is set.
        start: Lambda of the first epochs, in [0, 1].
        step: What it falls by, 0 or more.
        every: After so many epochs.
        floor: Below which it does not fall, in [0, start].

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, *, loss: GatedAttentionLoss, start: float, step: float, every: int, floor: float) -> None:
        if not 0 <= floor <= start <= 1:
            raise ValueError(f"lambda_start is {start} and lambda_floor {floor}: expected 0 <= floor <= start <= 1")
        if step < 0 or every < 1:
            raise ValueError(f"lambda_step is {step} and lambda_every {every}: expected 0 or more, and 1 or more")
        self.loss = loss
        self.schedule = {"start": start, "step": step, "every": every, "floor": floor}
        super().__init__(
            parameter_setter=self._set,
            value_calculator=self._value,
            vc_kwargs={},
            epoch_level=True,
            event=Events.EPOCH_STARTED,  # type: ignore[arg-type]
        )

    def _set(self, value: float) -> None:
        self.loss.lambda_ = value

    def _value(self, current_step: int) -> float:
        return lambda_at(current_step, **self.schedule)  # type: ignore[arg-type]

    def attach(self, engine: Engine) -> None:
        """Register on the trainer, before the handlers that record its metrics."""
        engine.add_event_handler(Events.STARTED, self._check)
        super().attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._record)

    def _check(self, engine: Engine) -> None:
        if self._value(engine.state.max_epochs or 1) < 1:
            return
        every = self.schedule["every"]
        ever = self._value(int(every) + 1) < 1
        logger.warning(
            "lambda stays 1 in all %s epochs: the fusion, whose output is the prediction, would never be trained. "
            "Give %s",
            engine.state.max_epochs,
            f"max_epochs above {every}, or a smaller lambda_every"
            if ever
            else "a lambda_step above 0 and a lambda_floor below 1",
        )

    def _record(self, engine: Engine) -> None:
        engine.state.metrics["lambda"] = self.loss.lambda_


class FusionInferer(AutocastInferer):
    """Runs the network in training: while the fusion has no weight (lambda 1) the instances are not looked at.

    That changes no gradient and saves most of the time.
    """

    def __init__(self, *, loss: GatedAttentionLoss, amp: bool | str = False) -> None:
        super().__init__(amp=amp)
        self.loss = loss

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Images to the network's output."""
        return super().__call__(inputs, network, *args, fuse=self.loss.lambda_ < 1, **kwargs)
