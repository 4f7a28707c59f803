"""The moving average of the weights equals its formula, written out in double precision."""

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from label_efficient.engine.averages import MovingAverage, moving_average


class Small(torch.nn.Module):
    """A layer with weights, batch statistics and a buffer that is not part of the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)
        self.register_buffer("mean", torch.ones(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B x 3 to B x 2."""
        return self.norm(self.linear(x))


@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_the_average_is_exponential_over_steps(decay):
    network = Small()
    average = moving_average(network, decay)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    history: list[dict[str, np.ndarray]] = []

    def step(engine: Engine, batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        network(batch).pow(3).mean().backward()
        optimizer.step()
        history.append({k: v.detach().double().numpy().copy() for k, v in network.named_parameters()})

    engine = Engine(step)
    MovingAverage(average, network).attach(engine)
    engine.run(list(torch.randn(3, 4, 3)), max_epochs=2)
    assert average is not None and average.module is not network and len(history) == 6
    expected = history[0]
    for weights in history[1:]:
        expected = {k: decay * expected[k] + (1 - decay) * v for k, v in weights.items()}
    for name, value in average.module.named_parameters():
        np.testing.assert_allclose(value.detach().numpy(), expected[name], rtol=1e-5, atol=1e-6)
        assert np.isfinite(expected[name]).all()
    assert not np.allclose(expected["linear.weight"], history[-1]["linear.weight"], rtol=1e-3)
    # Batch statistics are those of the network that is trained.
    for name, value in average.module.named_buffers():
        assert torch.equal(value, network.get_buffer(name)), name
    # What `evaluation.Evaluation.last_weights` takes out of a checkpoint.
    assert {k for k in average.state_dict() if k.startswith("module.")} == {f"module.{k}" for k in network.state_dict()}


def test_no_average_without_a_decay():
    network, engine = Small(), Engine(lambda engine, batch: None)
    assert moving_average(network, 0.0) is None
    MovingAverage(None, network).attach(engine)
    assert engine.run([0]).iteration == 1
