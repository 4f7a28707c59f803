"""The loss of the two outputs, equation 3 of the paper, and how its weight lambda falls."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from label_efficient.engine.weighted_loss import weighted_cross_entropy


class GatedAttentionLoss(nn.Module):
    """Equation 3: lambda * CE(Y_g, y) + (1 - lambda) * CE(Y_f, y).

    After a call `terms` has `global_loss` and `fusion_loss`, detached; a term that was not computed is absent.

    Args:
        class_weights: One weight above 0 per class in both cross-entropies, or None.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).

    Attributes:
        lambda_: The weight of the global branch, in [0, 1]; set by `handlers.LambdaDecay`.
    """

    class_weights: torch.Tensor | None

    def __init__(self, *, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}, expected at least 0 and less than 1")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights)
        self.label_smoothing = label_smoothing
        self.lambda_ = 1.0
        self.terms: dict[str, torch.Tensor] = {}

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Logits B x N and targets (B,) to a scalar, in single precision."""
        return weighted_cross_entropy(logits.float(), targets, self.class_weights, self.label_smoothing)

    def forward(self, output: Mapping[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """Output of `network.GatedAttentionNet` and targets (B,) to a scalar.

        Raises:
            ValueError: If lambda gives weight to the fusion and the output has none.
        """
        global_loss = self.cross_entropy(output["global_logits"], targets)
        self.terms = {"global_loss": global_loss.detach()}
        if "logits" not in output:
            if self.lambda_ < 1:
                raise ValueError(f"lambda is {self.lambda_}, and the network has no fusion: expected lambda 1")
            return global_loss
        fusion_loss = self.cross_entropy(output["logits"], targets)
        self.terms["fusion_loss"] = fusion_loss.detach()
        return self.lambda_ * global_loss + (1 - self.lambda_) * fusion_loss


def lambda_at(epoch: int, *, start: float, step: float, every: int, floor: float) -> float:
    """Lambda in an epoch (from 1): `start`, less `step` after every `every` epochs, never below `floor`."""
    # Rounded, or ten steps of 0.1 would leave 1e-16 of the global loss.
    return max(round(start - step * ((epoch - 1) // every), 9), floor)
