"""Figures of an epoch on validation: accuracy, AUC, Dice, and the one number that chooses the weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from sklearn.metrics import balanced_accuracy_score

from label_efficient.evaluation.metrics import BINARY, accuracy, auc

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
    has_mask = (mask != UNKNOWN_MASK).all(dim=(1, 2, 3))
    reference = mask == 1
    pred = output["pred"]
    predicted = pred["mask_logits"] > 0 if "mask_logits" in pred else torch.zeros_like(reference)
    both, alone, truth = (m.sum(dim=(1, 2, 3)).float() for m in (predicted & reference, predicted, reference))
    columns = [both[:, None], alone[:, None]]
    if "logits" in pred:
        columns.append(torch.softmax(pred["logits"].float(), dim=1))
    known = truth if "mask_logits" in pred else torch.full_like(truth, UNKNOWN)
    known = torch.where(has_mask, known, torch.full_like(known, UNKNOWN))
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

    Raises:
        ValueError: If the score is unknown.
    """

    def __init__(self, *, score: str) -> None:
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score is {score!r}, expected one of {', '.join(SCORES)}")
        self.score = score

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> list[torch.Tensor]:
        """Rows of `predictions_and_targets`, as MONAI accumulates and gathers them."""
        if y is None or len(y) != len(y_pred):
            raise ValueError("expected the two tensors of predictions_and_targets, of one length")
        return [v.as_tensor() if isinstance(v, MetaTensor) else v for v in (y_pred.detach(), y.detach())]

    def aggregate(self) -> torch.Tensor:
        """The figure over everything accumulated, a float64 scalar; NaN where it is undefined."""
        buffers = self.get_buffer()
        if buffers is None:
            raise ValueError("no image was seen: the score of an epoch needs at least one")
        predictions, targets = (b.double().cpu() for b in buffers)
        dice, probabilities, labels = _known(predictions, targets)
        if self.score == "dice":
            value = dice
        elif self.score == "score":
            parts = [dice]
            if len(labels):
                parts.append(float(balanced_accuracy_score(labels, probabilities.argmax(dim=1))))
            parts = [part for part in parts if not math.isnan(part)]
            value = sum(parts) / len(parts) if parts else math.nan
        elif not len(labels):
            value = math.nan
        else:
            compute = auc if self.score == "auc" else accuracy
            value = compute(labels, probabilities, BINARY if probabilities.shape[1] == 2 else "multi-class")
        return torch.tensor(value, dtype=torch.float64)


def _known(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Mean Dice (NaN without a mask), and probabilities and classes of the images with a class."""
    masked = targets[:, 0] != UNKNOWN
    both, either = predictions[masked, 0], predictions[masked, 1] + targets[masked, 0]
    # Two empty masks agree.
    dice = float(torch.where(either > 0, 2 * both / either, 1.0).mean()) if masked.any() else math.nan
    probabilities = predictions[:, 2:]
    labelled = (targets[:, 1] != UNKNOWN) if probabilities.shape[1] else torch.zeros(len(targets), dtype=torch.bool)
    return dice, probabilities[labelled], targets[labelled, 1].long()
