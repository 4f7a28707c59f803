"""Handlers of gated attention: lambda epoch by epoch, when the fusion runs, what scores are made of."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from scipy.special import softmax

from gated_attention.handlers import FusionInferer, LambdaDecay
from gated_attention.losses import GatedAttentionLoss
from gated_attention.scores import probabilities_and_targets

# Lambda


def run_epochs(epochs: int, *, done: int = 0, **schedule: Any) -> tuple[list[float], list[float]]:
    """Lambda within every step and the recorded metric of every epoch; `done` epochs were made before a break."""
    loss, seen, recorded = GatedAttentionLoss(), [], []
    engine = Engine(lambda engine, batch: seen.append(loss.lambda_))
    LambdaDecay(loss=loss, **schedule).attach(engine)

    def restore(engine: Engine) -> None:  # as the record of a run does
        engine.state.epoch = done

    if done:
        engine.add_event_handler(Events.STARTED, restore)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: recorded.append(engine.state.metrics["lambda"]))
    engine.run([0, 0], max_epochs=epochs)
    assert seen[::2] == seen[1::2]
    return seen[::2], recorded


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Epochs 1 to `every` have the start; the first fall is in the one after.
        ((1.0, 0.1, 2, 0.0), [1, 1, 0.9, 0.9, 0.8, 0.8, 0.7]),
        ((1.0, 0.1, 1, 0.0), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0, 0]),
        ((1.0, 0.3, 3, 0.25), [1, 1, 1, 0.7, 0.7, 0.7, 0.4, 0.4, 0.4, 0.25, 0.25, 0.25, 0.25]),
        ((0.5, 0.0, 1, 0.0), [0.5, 0.5, 0.5]),
        ((0.6, 7.0, 2, 0.1), [0.6, 0.6, 0.1, 0.1]),
        ((0.0, 0.1, 1, 0.0), [0, 0]),
    ],
)
def test_lambda_at_every_boundary(schedule, expected):
    names = ("start", "step", "every", "floor")
    seen, recorded = run_epochs(len(expected), **dict(zip(names, schedule, strict=True)))
    assert seen == expected and recorded == expected  # to the last digit: 1e-16 would still train the global loss


def test_the_papers_schedule():
    # "starts at 1 and falls by 0.1 after every 20 epochs, never below 0"
    seen, _ = run_epochs(221, start=1.0, step=0.1, every=20, floor=0.0)
    assert [seen[e - 1] for e in (1, 20, 21, 40, 41, 200, 201, 220, 221)] == [1, 1, 0.9, 0.9, 0.8, 0.1, 0, 0, 0]


@pytest.mark.parametrize("done", [1, 2, 5])
def test_a_resumed_run_goes_on_with_the_lambda_of_its_epoch(done):
    schedule = {"start": 1.0, "step": 0.2, "every": 2, "floor": 0.1}
    assert run_epochs(9, done=done, **schedule)[0] == run_epochs(9, **schedule)[0][done:]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"floor": 0.5, "start": 0.4}, r"lambda_start is 0\.4 and lambda_floor 0\.5"),
        ({"start": 1.1}, r"lambda_start is 1\.1"),
        ({"floor": -0.1}, r"lambda_floor -0\.1"),
        ({"step": -0.1}, r"lambda_step is -0\.1"),
        ({"every": 0}, r"lambda_every 0"),
    ],
)
def test_lambda_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        LambdaDecay(loss=GatedAttentionLoss(), **{"start": 1.0, "step": 0.1, "every": 20, "floor": 0.0, **wrong})


@pytest.mark.parametrize(
    ("epochs", "changes", "said"),
    [
        (20, {}, "max_epochs above 20, or a smaller lambda_every"),
        (21, {}, None),
        (3, {"every": 2}, None),
        (2, {"start": 0.9}, None),
        (3, {"every": 1, "step": 0.0}, "lambda_step above 0"),
        (3, {"every": 1, "floor": 1.0}, "lambda_floor below 1"),
    ],
)
def test_a_run_whose_fusion_is_never_trained_warns(epochs, changes, said, caplog):
    with caplog.at_level(logging.WARNING):
        run_epochs(epochs, **{"start": 1.0, "step": 0.1, "every": 20, "floor": 0.0, **changes})
    assert len(caplog.records) == (said is not None)
    if said is not None:
        assert f"lambda stays 1 in all {epochs} epochs" in caplog.text and said in caplog.text
        assert "never be trained" in caplog.text


# The inferer


class Recorder(torch.nn.Module):
    """Remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, images: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A list of vectors, or B x 4, to B x 2."""
        self.calls.append((args, kwargs))
        return self.linear(images if isinstance(images, torch.Tensor) else torch.stack(images))


@pytest.mark.parametrize("weight", [1.0, 0.999, 0.5, 0.0])
def test_the_instances_are_looked_at_when_the_fusion_has_weight(weight):
    network, loss = Recorder(), GatedAttentionLoss()
    loss.lambda_ = weight
    FusionInferer(loss=loss)([torch.zeros(4)], network, 5, name=6)
    assert network.calls == [((5,), {"fuse": weight < 1, "name": 6})]


# Scores


def test_scores_are_those_of_the_branch():
    rng = np.random.default_rng(0)
    fused, alone = (torch.from_numpy(rng.normal(0, 5, (6, 3)).astype(np.float32)) for _ in range(2))
    label = torch.arange(6) % 3
    output = {"pred": {"logits": fused, "global_logits": alone}, "label": label}
    for branch, logits in (("fusion", fused), ("global", alone)):
        probabilities, targets = probabilities_and_targets(output, branch)
        np.testing.assert_allclose(probabilities, softmax(logits.double().numpy(), axis=1), atol=1e-6)
        assert targets is label
    without = {"pred": {"global_logits": alone}, "label": label}
    for branch in ("fusion", "global"):
        found = probabilities_and_targets(without, branch)[0]
        np.testing.assert_allclose(found, softmax(alone.double().numpy(), axis=1), atol=1e-6)


def test_scores_of_half_precision_are_of_single():
    logits = torch.tensor([[0.0, 8.0, 9.0]], dtype=torch.bfloat16)
    probabilities, _ = probabilities_and_targets({"pred": {"logits": logits}, "label": torch.zeros(1)})
    assert probabilities.dtype == torch.float32 and float(probabilities.sum()) == pytest.approx(1, abs=1e-6)
