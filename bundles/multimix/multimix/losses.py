"""Losses of MultiMix and of the methods it is compared with."""

from collections.abc import Mapping, Sequence

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from label_efficient.engine.weighted_loss import weighted_cross_entropy

UNKNOWN = -1  # label of an image whose class is not known


class MultiMixLoss(nn.Module):
    """L = CE + lambda * CE of pseudo-labels + alpha * Dice + beta * KL, as far as the network's outputs have them.

    Args:
        confidence_threshold: t in 0..1, from which on a pseudo-label counts.
        kl_detach_labelled: Whether the labelled side of the KL is a constant.
        class_weights: K weights of the classes in the supervised cross-entropy, or None.
    """

    class_weights: torch.Tensor | None

    def __init__(
        self,
        *,
        confidence_threshold: float = 0.7,
        lambda_: float = 0.25,
        alpha: float = 5.0,
        beta: float = 0.01,
        kl_detach_labelled: bool = True,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.weights = {"class_loss": 1.0, "pseudo_label_loss": lambda_, "mask_loss": alpha, "kl_loss": beta}
        self.confidence_threshold = confidence_threshold
        self.kl_detach_labelled = kl_detach_labelled
        self.dice_loss = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)
        self.terms: dict[str, torch.Tensor] = {}
        self.ratios = {"pseudo_label_accuracy": ("pseudo_label_correct", "pseudo_label_known")}
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights)

    def forward(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Total loss, a scalar.

        Args:
            outputs: What `network.MultiMixNet` returns for streams.
            targets: `label` (B,) for `logits`; `mask` B x 1 x H x W of 0 and 1 for `mask_logits`; `hidden_label` (B,)
                for the unlabelled images, `UNKNOWN` where it is, only counted.

        The terms of the last call are in `self.terms`, detached and not weighted: `class_loss`, `pseudo_label_loss`,
        `mask_loss`, `kl_loss`; and of the pseudo-labels `pseudo_label_share` (of the images, above the threshold),
        `pseudo_label_known` and `pseudo_label_correct` (counts, of those with a known class; `ratios` says of what).
        """
        terms: dict[str, torch.Tensor] = {}
        outputs = {name: output.float() for name, output in outputs.items()}
        if "logits" in outputs:
            terms["class_loss"] = weighted_cross_entropy(outputs["logits"], targets["label"], self.class_weights)
        if "strong_logits" in outputs:
            pseudo_labels, confident = pseudo_label(outputs["weak_logits"], self.confidence_threshold)
            terms["pseudo_label_loss"] = pseudo_label_loss(outputs["strong_logits"], pseudo_labels, confident)
            known = confident & (targets["hidden_label"] != UNKNOWN)
            terms["pseudo_label_share"] = confident.float().mean()
            terms["pseudo_label_known"] = known.float().sum()
            terms["pseudo_label_correct"] = (known & (pseudo_labels == targets["hidden_label"])).float().sum()
        if "mask_logits" in outputs:
            terms["mask_loss"] = self.dice_loss(outputs["mask_logits"], targets["mask"].float())
        if "unlabelled_mask_logits" in outputs:
            labelled = outputs["mask_logits"].detach() if self.kl_detach_labelled else outputs["mask_logits"]
            terms["kl_loss"] = bernoulli_kl(labelled, outputs["unlabelled_mask_logits"])
        self.terms = {name: value.detach() for name, value in terms.items()}
        return torch.stack([self.weights[name] * loss for name, loss in terms.items() if name in self.weights]).sum()


def pseudo_label(weak_logits: torch.Tensor, confidence_threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Class of each weakly augmented image, and whether its probability is at least the threshold.

    Logits B x K to int64 (B,) and bool (B,), both without gradient.
    """
    confidence, pseudo_labels = torch.softmax(weak_logits.detach(), dim=1).max(dim=1)
    return pseudo_labels, confidence >= confidence_threshold


def pseudo_label_loss(
    strong_logits: torch.Tensor, pseudo_labels: torch.Tensor, confident: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the strong view against the pseudo-labels: mean over the whole batch, the others count zero."""
    return (F.cross_entropy(strong_logits, pseudo_labels, reduction="none") * confident).mean()


def bernoulli_kl(labelled_logits: torch.Tensor, unlabelled_logits: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of the two sigmoid maps, in nats: mean over the pixels and over all pairs of images.

    Each labelled image (p, B x 1 x H x W) is paired with each unlabelled one (q, B' x 1 x H x W), which is what pairing
    them by chance comes to on average: the unlabelled masks are drawn towards the mean labelled one.
    """
    p = torch.sigmoid(labelled_logits)
    # KL = sum over both outcomes of p log p - p log q: linear in p where q stands, so the pairs need only p's mean.
    own = p * F.logsigmoid(labelled_logits) + (1 - p) * F.logsigmoid(-labelled_logits)
    mean_p = p.mean(dim=0)
    cross = mean_p * F.logsigmoid(unlabelled_logits) + (1 - mean_p) * F.logsigmoid(-unlabelled_logits)
    return own.mean() - cross.mean()
