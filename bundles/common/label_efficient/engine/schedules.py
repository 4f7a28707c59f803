"""How the learning rate falls."""

import math

LR_SCHEDULES = ("step", "one_cycle", "constant")
_RISE = 0.25  # share of a one-cycle schedule in which the rate rises


def rate_factor(schedule: str, epoch: float, *, max_epochs: int, lr_step: int, lr_factor: float) -> float:
    """Factor of the learning rate.

    Args:
        schedule: "step": times `lr_factor` every `lr_step` epochs. "one_cycle": up from a twenty-fifth over the first
            quarter of the run, then along a cosine to nearly zero (after Smith and Topin, 2018, without momentum).
            "constant".
        epoch: How far training is, from 0; the steps within an epoch are fractions.
        max_epochs: Length of the run.
        lr_step: Epochs of a step.
        lr_factor: Of a step.
    """
    if schedule == "step":
        return lr_factor ** int(epoch // lr_step)
    if schedule == "one_cycle":
        done = min(epoch / max_epochs, 1.0)
        if done < _RISE:
            return 0.04 + 0.96 * done / _RISE
        return max(0.5 * (1 + math.cos(math.pi * (done - _RISE) / (1 - _RISE))), 1e-4)
    return 1.0
