"""AUC and ACC of an epoch, for the engines that train and validate."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric

from label_efficient.evaluation.metrics import accuracy, auc, per_class

logger = logging.getLogger(__name__)

_SCORES = {"auc": auc, "acc": accuracy}


class EpochScore(CumulativeIterationMetric):
    """AUC or ACC over all images of an epoch, for `monai.handlers.IgniteMetricHandler`.

    MONAI accumulates the batches and gathers them over ranks. Images that a sampler repeats to fill up a rank would
    count twice: use one that does not (`monai.data.DistributedSampler(even_divisible=False)`). `score` is "auc" or
    "acc", `task` one of MedMNIST's task names.
    """

    def __init__(self, *, score: str, task: str) -> None:
        super().__init__()
        self.compute = _SCORES[score]
        self.task = task
        self._warned = False

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> list[Any]:
        """Probabilities B x K and targets (B,) or B x K, as they are to be accumulated."""
        return [y_pred, y]

    def aggregate(self) -> torch.Tensor:
        """The score of everything accumulated, a float64 scalar.

        Classes whose AUC is undefined are left out of the mean, which only compares epochs on the same images; NaN
        where that of all is.

        Raises:
            ValueError: If a probability is NaN.
        """
        probabilities, targets = (buffer.cpu() for buffer in self.get_buffer())
        if not torch.isfinite(probabilities).all():
            raise ValueError("training diverged: the network's outputs are not finite; try a smaller learning_rate")
        value = self.compute(targets, probabilities, self.task)
        if math.isnan(value):
            names = [str(k) for k in range(probabilities.shape[1])]
            areas = {row["class"]: row["auc"] for row in per_class(targets, probabilities, self.task, names)}
            defined = [area for area in areas.values() if not math.isnan(area)]
            value = sum(defined) / len(defined) if defined else math.nan
            if not self._warned:
                self._warned = True
                text = "The AUC is undefined: no image, or every image, is of class %s."
                logger.warning(text, ", ".join(name for name, area in areas.items() if math.isnan(area)))
        return torch.tensor(value, dtype=torch.float64)


def score_handler(score: str, *, task: str, output_transform: Callable[[Any], Any]) -> IgniteMetricHandler:
    """Handler that leaves an `EpochScore` of every epoch, of probabilities and targets, in an engine's metrics."""
    metric = EpochScore(score=score, task=task)
    return IgniteMetricHandler(metric_fn=metric, output_transform=output_transform, save_details=False)
