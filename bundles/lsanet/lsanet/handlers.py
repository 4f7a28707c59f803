"""The weights beta of the layer selective attention over an epoch, and the probabilities that its scores are of."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from label_efficient.engine.distributed import rank_and_size

from .network import ensemble, node_probabilities


class LSAWeights:
    """Mean and spread of beta over the images of an epoch, and mean of its gates, in the engine's metrics.

    `beta_C1`, `beta_C1_std` (standard deviation over the images), `gate_C1`, ... The gates are means of
    sigmoids in the paper's form: gates near 0 or 1 mean that beta has saturated. `RunRecord` writes them to
    `history.csv` and TensorBoard; `training_figures.save_beta` draws them. Does nothing for a method without layer
    selective attention. `node_names` are those of the L output nodes, shallow to deep.
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


def probabilities_and_targets(
    output: dict[str, Any], multi_label: bool = False, keep_nodes: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Engine output with `pred` (what `network.LSANet` returns) and `label` to probabilities and targets.

    The probabilities are those of what is shipped, by which the epoch is chosen: C4, or with `keep_nodes` the ensemble.
    """
    if keep_nodes:
        pred = {name: value.float() for name, value in output["pred"].items()}
        return ensemble(*node_probabilities(pred, multi_label)), output["label"]
    logits = output["pred"]["logits"].float()
    return torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=1), output["label"]
