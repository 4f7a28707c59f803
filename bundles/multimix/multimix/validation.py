"""Figures of an epoch on validation: accuracy, AUC, Dice, and the one number that chooses the weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from sklearn.metrics import balanced_accuracy_score

from label_efficient.evaluation.metrics import BINARY, accuracy, auc
from label_efficient.options import one_of

from .losses import UNKNOWN
from .streams import UNKNOWN_MASK
from .transforms import to_input

SCORES = ("score", "acc", "auc", "dice")


class PrepareBatch:
    """Ignite's `prepare_batch`: a batch of `streams.PartSet` to the network's input and what is known of it."""

    def __call__(
        self, batch: Mapping[str, Any], device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Batch to images float32 B x 1 x S x S, and a dictionary of `label` and `mask`."""
        targets = {name: batch[name].to(device, non_blocking=non_blocking) for name in ("label", "mask")}
        return to_input(batch["image"], device), targets


def predictions_and_targets(output: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of the evaluator to one row an image, for `ValidationScore`.

    Returns:
        B x (2 + K): pixels in both masks, pixels in the predicted mask, probabilities of the K classes (none without a
        classifier); and B x 2: pixels in the reference mask or `UNKNOWN`, class or `UNKNOWN`.
    """
    label, mask = output["label"]["label"], output["label"]["mask"]
    pred = output["pred"]
    has_mask = (mask != UNKNOWN_MASK).all(dim=(1, 2, 3)) & ("mask_logits" in pred)
    reference = mask == 1
    predicted = pred["mask_logits"] > 0 if "mask_logits" in pred else torch.zeros_like(reference)
    both, alone, truth = (m.sum(dim=(1, 2, 3)).float() for m in (predicted & reference, predicted, reference))
    columns = [both[:, None], alone[:, None]]
    if "logits" in pred:
        columns.append(torch.softmax(pred["logits"].float(), dim=1))
    known = torch.where(has_mask, truth, UNKNOWN)
    return torch.cat(columns, dim=1), torch.stack([known, label.float()], dim=1)


def score_handler(score: str) -> IgniteMetricHandler:
    """Handler that leaves a figure of every epoch, as of `ValidationScore`, in an engine's metrics."""
    metric = ValidationScore(score=score)
    return IgniteMetricHandler(metric_fn=metric, output_transform=predictions_and_targets, save_details=False)


class ValidationScore(CumulativeIterationMetric):
    """A figure over all images of an epoch, for `monai.handlers.IgniteMetricHandler`.

    Args:
        score: "acc"; "auc"; "dice", the mean over the images; or "score", the mean of the balanced accuracy (which does
            not reward a leaning towards the larger class) and the Dice, as far as the network has both.
    """

    def __init__(self, *, score: str) -> None:
        super().__init__()
        self.score = one_of("score", score, SCORES)

    def _compute_tensor(self, y_pred: torch.Tensor, y: Any = None, **kwargs: Any) -> list[torch.Tensor]:
        """Rows of `predictions_and_targets`, as MONAI accumulates and gathers them."""
        return [y_pred.detach(), y.detach()]

    def aggregate(self) -> torch.Tensor:
        """The figure over everything accumulated, a float64 scalar; NaN where it is undefined."""
        buffers: Any = self.get_buffer()
        predictions, targets = (buffer.double().cpu() for buffer in buffers)
        masked = targets[:, 0] != UNKNOWN
        both, either = predictions[masked, 0], predictions[masked, 1] + targets[masked, 0]
        # Two empty masks agree.
        dice = float(torch.where(either > 0, 2 * both / either, 1.0).mean())  # NaN without a mask
        known = targets[:, 1] != UNKNOWN
        probabilities, labels = predictions[known, 2:], targets[known, 1].long()
        classified = probabilities.numel() > 0
        value = math.nan
        if self.score == "dice":
            value = dice
        elif self.score == "score":
            parts = [dice]
            if classified:
                parts.append(float(balanced_accuracy_score(labels, probabilities.argmax(dim=1))))
            parts = [part for part in parts if not math.isnan(part)]
            value = sum(parts) / len(parts) if parts else math.nan
        elif classified:
            compute = auc if self.score == "auc" else accuracy
            value = compute(labels, probabilities, BINARY if probabilities.shape[1] == 2 else "multi-class")
        return torch.tensor(value, dtype=torch.float64)
