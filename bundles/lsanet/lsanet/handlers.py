"""Ignite handlers of LSANet: the terms of the loss, and the weights beta of the layer selective attention."""

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from ._records import rank_and_size
from .losses import LSANetLoss


class LossTerms:
    """Means of the loss and of its terms over an epoch, in the engine's metrics.

    `loss`, `branch_loss` (L_b or its fixed-weight counterpart), `synergy_loss` (L_k), `ce_C1`, ...
    (cross-entropy of each node); in training `images_per_second` too.

    Args:
        loss_function: The loss, which keeps its terms.
        node_names: Names of the L output nodes, shallow to deep.
        training: Whether the engine is the trainer. An evaluator computes no loss: the handler does.
    """

    def __init__(self, loss_function: LSANetLoss, node_names: Sequence[str], training: bool = True) -> None:
        self.loss_function = loss_function
        self.names = ["loss", "branch_loss", "synergy_loss", *[f"ce_{name}" for name in node_names]]
        self.training = training
        self.sums: torch.Tensor | None = None
        self.count = 0
        self.started = 0.0

    def attach(self, engine: Engine) -> None:
        """Register on a trainer or an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _reset(self, engine: Engine) -> None:
        self.sums, self.count, self.started = None, 0, time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Add the terms of the batch that has just been computed."""
        output: Any = engine.state.output
        if not self.training:
            with torch.no_grad():
                loss = self.loss_function(output["pred"], output["label"])
        else:
            loss = output["loss"].detach()
        terms = self.loss_function.terms
        scalars = torch.stack([loss.float(), terms["branch_loss"].float(), terms["synergy_loss"].float()])
        # The sums stay on the device: reading them here would wait for it at every step.
        batch = torch.cat([scalars, terms["node_losses"].float()]) * len(output["label"])
        self.sums = batch if self.sums is None else self.sums + batch
        self.count += len(output["label"])

    def _report(self, engine: Engine) -> None:
        if self.sums is None:
            return
        sums = torch.cat([self.sums, self.sums.new_tensor([self.count])]).double()
        if rank_and_size()[1] > 1:
            dist.all_reduce(sums)
        values = (sums[:-1] / sums[-1]).tolist()
        engine.state.metrics.update(zip(self.names, values, strict=True))
        if self.training:
            seconds = time.perf_counter() - self.started
            engine.state.metrics["images_per_second"] = float(sums[-1]) / seconds


class LSAWeights:
    """Mean and spread of beta over the images of an epoch, and mean of its gates, in the engine's metrics.

    `beta_C1`, `beta_C1_std` (standard deviation over the images), `gate_C1`, ... The gates are means of
    sigmoids in the paper's form: gates near 0 or 1 mean that beta has saturated. `RunRecord` writes them to
    `history.csv` and TensorBoard; `training_figures.save_beta` draws them. Does nothing for a method without layer
    selective attention.

    Args:
        node_names: Names of the L output nodes, shallow to deep.
    """

    def __init__(self, node_names: Sequence[str]) -> None:
        self.node_names = tuple(node_names)
        self.sums: torch.Tensor | None = None
        self.count = 0

    def attach(self, engine: Engine) -> None:
        """Register on a trainer or an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _reset(self, engine: Engine) -> None:
        self.sums, self.count = None, 0

    def __call__(self, engine: Engine) -> None:
        """Add the weights of the batch that has just been computed."""
        output: Any = engine.state.output
        pred = output["pred"]
        if "beta" not in pred:
            return
        beta, gate = pred["beta"].detach().double(), pred["gate"].detach().double()
        batch = torch.stack([beta.sum(0), beta.square().sum(0), gate.sum(0)])
        self.sums = batch if self.sums is None else self.sums + batch
        self.count += len(beta)

    def _report(self, engine: Engine) -> None:
        if self.sums is None:
            return
        sums = torch.cat([self.sums.flatten(), self.sums.new_tensor([self.count])])
        if rank_and_size()[1] > 1:
            dist.all_reduce(sums)
        beta, square, gate = (sums[:-1] / sums[-1]).view(3, -1)
        spread = (square - beta.square()).clamp_min(0).sqrt()
        for index, name in enumerate(self.node_names):
            engine.state.metrics[f"beta_{name}"] = float(beta[index])
            engine.state.metrics[f"beta_{name}_std"] = float(spread[index])
            engine.state.metrics[f"gate_{name}"] = float(gate[index])


def probabilities_and_targets(output: dict[str, Any], multi_label: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Engine output with `pred` (what `network.LSANet` returns) and `label` to probabilities of C4 and targets."""
    logits = output["pred"]["logits"].float()
    return torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=1), output["label"]
