"""AUC and ACC of an epoch, for the engines that train and validate."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from monai.utils import convert_to_tensor

from label_efficient.evaluation.metrics import accuracy, auc, check_task, undefined_classes

logger = logging.getLogger(__name__)

SCORES = ("auc", "acc")


class EpochScore(CumulativeIterationMetric):
    """AUC or ACC over all images of an epoch, for ``monai.handlers.IgniteMetricHandler``.

    Batches ``(B, K)`` and ``(B,)``, or lists of single images as MONAI decollates them, are accumulated and
    gathered over ranks by MONAI. Images that a sampler repeats to fill up a rank would count twice: use one
    that does not (``monai.data.DistributedSampler(even_divisible=False)``).

    Args:
        score: ``"auc"`` or ``"acc"``.
        task: one of MedMNIST's task names.
    """

    def __init__(self, *, score: str, task: str) -> None:
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score must be one of {SCORES}, got {score!r}.")
        check_task(task)
        self.score = score
        self.task = task
        self._warned = False

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Any:
        """Batch up single images; decollating turns labels into plain numbers, which MONAI's own refuses."""
        if y is None or len(y_pred) != len(y):
            raise ValueError(f"Got {len(y_pred)} predictions and {'no' if y is None else len(y)} targets.")
        return self._compute_tensor(
            torch.stack([convert_to_tensor(one, track_meta=False) for one in y_pred]),
            torch.stack([convert_to_tensor(one, track_meta=False) for one in y]),
        )

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> list[torch.Tensor]:
        """Probabilities ``(B, K)`` and targets ``(B,)`` or ``(B, K)``, in types that every rank shares."""
        if y is None:
            raise ValueError("EpochScore needs targets, got a prediction only.")
        if len(y_pred) != len(y):
            raise ValueError(f"Got {len(y_pred)} predictions and {len(y)} targets.")
        probabilities = convert_to_tensor(y_pred.detach(), track_meta=False)
        targets = convert_to_tensor(y.detach(), track_meta=False)
        if targets.is_floating_point() and not torch.equal(targets, targets.round()):
            raise ValueError("targets must be whole numbers.")
        if probabilities.dtype != torch.float64:
            probabilities = probabilities.float()
        return [probabilities, targets.long()]

    def aggregate(self) -> torch.Tensor:
        """The score of everything accumulated, a float64 scalar; NaN where it is undefined."""
        buffers = self.get_buffer()
        if buffers is None:
            raise ValueError(f"No image was seen: the {self.score} of an epoch needs at least one.")
        probabilities, targets = buffers
        compute = auc if self.score == "auc" else accuracy
        value = compute(targets, probabilities, self.task)
        if math.isnan(value) and not self._warned:
            self._warned = True
            names = [str(k) for k in range(probabilities.shape[1])]
            missing = undefined_classes(targets, probabilities, self.task, names)
            logger.warning("The AUC is undefined: no image, or every image, is of class %s.", ", ".join(missing))
        return torch.tensor(value, dtype=torch.float64)


def score_handler(score: str, *, task: str, output_transform: Callable[[Any], Any]) -> IgniteMetricHandler:
    """Handler that leaves a score of every epoch in an engine's metrics.

    Args:
        score: As of `EpochScore`, like the task.
        task: Of the data.
        output_transform: The engine's output to probabilities and targets.
    """
    metric = EpochScore(score=score, task=task)
    return IgniteMetricHandler(metric_fn=metric, output_transform=output_transform, save_details=False)
