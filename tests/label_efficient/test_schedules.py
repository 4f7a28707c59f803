"""The learning rate falls as its schedule says, by epochs and by steps."""

import math

import numpy as np
import pytest
import torch

from label_efficient.engine.schedules import LR_SCHEDULES, lr_scheduler, rate_factor

RATE = {"max_epochs": 20, "lr_step": 8, "lr_factor": 0.1}


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1), (7.99, 1), (8, 0.1), (15.5, 0.1), (16, 0.01), (24, 0.001)])
def test_steps(epoch, factor):
    assert rate_factor("step", epoch, **RATE) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [
        (0, 0.04),
        (2.5, 0.52),
        (5, 1.0),
        (10, 0.5 * (1 + math.cos(math.pi / 3))),
        (12.5, 0.5),
        (20, 1e-4),
        (25, 1e-4),
    ],
)
def test_one_cycle(epoch, factor):
    assert rate_factor("one_cycle", epoch, **RATE) == pytest.approx(factor)


def test_rates_are_never_zero_and_one_cycle_has_one_top():
    epochs = np.linspace(0, 20, 401)
    for schedule in LR_SCHEDULES:
        assert min(rate_factor(schedule, float(epoch), **RATE) for epoch in epochs) > 0
    rates = np.array([rate_factor("one_cycle", float(epoch), **RATE) for epoch in epochs])
    assert (np.diff(rates[:101]) > 0).all() and (np.diff(rates[100:]) <= 0).all()
    assert {rate_factor("constant", float(epoch), **RATE) for epoch in epochs} == {1.0}


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1), (5, 0.5 * (1 + math.sqrt(0.5))), (10, 0.5), (20, 0)])
def test_cosine(epoch, factor):
    assert rate_factor("cosine", epoch, **RATE) == pytest.approx(factor, abs=1e-12)


def test_scheduler_counts_steps_as_parts_of_an_epoch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = lr_scheduler(optimizer, "one_cycle", max_epochs=4, steps_per_epoch=5)
    for step in range(20):
        expected = 2 * rate_factor("one_cycle", step / 5, max_epochs=4)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError, match="schedule is 'linear'"):
        rate_factor("linear", 0, max_epochs=1)
