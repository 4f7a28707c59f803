"""How the learning rate falls."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

LR_SCHEDULES = ("step", "one_cycle", "constant")
ALONG_THE_RUN = ("one_cycle", "cosine")  # a run of another length has another rate in every epoch
_RISE = 0.25  # share of a one-cycle schedule in which the rate rises


def rate_factor(schedule: str, epoch: float, *, max_epochs: int, lr_step: int = 1, lr_factor: float = 1.0) -> float:
    """Factor of the learning rate.

    Args:
        schedule: "step": times `lr_factor` every `lr_step` epochs. "one_cycle": up from a twenty-fifth over the first
            quarter of the run, then along a cosine to nearly zero (after Smith and Topin, 2018, without momentum).
            "cosine": along a cosine from the first epoch on. "constant".
        epoch: How far training is, from 0; the steps within an epoch are fractions.
        max_epochs: Length of the run.
        lr_step: Epochs of a step.
        lr_factor: Of a step.

    Raises:
        ValueError: If the schedule is unknown.
    """
    if schedule == "step":
        return lr_factor ** int(epoch // lr_step)
    if schedule == "one_cycle":
        done = min(epoch / max_epochs, 1.0)
        if done < _RISE:
            return 0.04 + 0.96 * done / _RISE
        return max(0.5 * (1 + math.cos(math.pi * (done - _RISE) / (1 - _RISE))), 1e-4)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * epoch / max_epochs))
    if schedule == "constant":
        return 1.0
    raise ValueError(f"schedule is {schedule!r}, expected cosine or one of {', '.join(LR_SCHEDULES)}")


def lr_scheduler(optimizer: Optimizer, schedule: str, *, steps_per_epoch: int = 1, **kwargs: Any) -> LambdaLR:
    """Scheduler by `rate_factor`, which takes `kwargs`; it is asked `steps_per_epoch` times in an epoch."""
    return LambdaLR(optimizer, lambda step: rate_factor(schedule, step / steps_per_epoch, **kwargs))
