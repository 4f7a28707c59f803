"""Losses of LSANet and of the methods it is compared with (equations 2 to 8)."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from label_efficient.options import one_of

from .network import METHODS, METHODS_WITH_LSA, METHODS_WITH_SYNERGY


class LSANetLoss(nn.Module):
    """Total loss of a method on the output of `LSANet`, with its terms kept apart for the log.

    lsanet: L_b + L_k (equation 5). dsn_lsa: L_b. dsn: L_M + L_m (equation 3). dsn_ks and dks: equation 3 plus
    L_k. baseline: L_M (equation 2).

    Args:
        method: One of `network.METHODS`.
        multi_label: Independent labels: binary cross-entropy (mean over the labels) and the Bernoulli form of
            L_k (sum over the labels of the KL of each pair) instead of the categorical forms.
        alpha: Weight of every auxiliary classifier in equation 4; for the methods without LSA.
        synergy_weight: mu_pq of equation 8, the same for all pairs.
        stop_gradient: Whether the teacher f_p of each pair is a constant, as in DKS.
        class_weights: K weights of the classes in the cross-entropy, or None.
        node_names: Names of the L output nodes, shallow to deep, to keep the terms of the nodes too.

    Raises:
        ValueError: If the method is unknown or a weight is negative.
    """

    class_weights: torch.Tensor | None

    def __init__(
        self,
        *,
        method: str = "lsanet",
        multi_label: bool = False,
        alpha: float = 1.0,
        synergy_weight: float = 1.0,
        stop_gradient: bool = True,
        class_weights: Sequence[float] | None = None,
        node_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.method = one_of("method", method, METHODS)
        for name, value in (("alpha", alpha), ("synergy_weight", synergy_weight)):
            if value < 0:
                raise ValueError(f"{name} is {value}, expected 0 or more")
        self.multi_label = multi_label
        self.alpha = alpha
        self.synergy_weight = synergy_weight
        self.stop_gradient = stop_gradient
        self.node_names = tuple(node_names)
        self.terms: dict[str, torch.Tensor] = {}
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights)

    def forward(self, output: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """Output of `LSANet` and targets, class indices (B,) or 0/1 (B x K) for multi-label, to a scalar.

        The terms of the last call are in `self.terms`, detached: `branch_loss` (L_b or its fixed-weight counterpart),
        `synergy_loss` (L_k) and with `node_names` `ce_C1`, ... (the mean cross-entropy of each).
        """
        logits = output["logits"].unsqueeze(1)
        if "aux_logits" in output:
            logits = torch.cat([output["aux_logits"], logits], dim=1)
        entropies = node_cross_entropy(logits, targets, self.multi_label, self.class_weights)
        if self.method in METHODS_WITH_LSA:
            branch = branch_loss(entropies, output["beta"])
        else:
            branch = deep_supervision_loss(entropies, self.alpha)
        synergy = torch.zeros_like(branch)
        if self.method in METHODS_WITH_SYNERGY:
            synergy = self.synergy_weight * synergy_loss(logits, self.multi_label, self.stop_gradient)
        self.terms = {"branch_loss": branch.detach(), "synergy_loss": synergy.detach()}
        if self.node_names:
            node_losses = entropies.detach().mean(dim=0)
            self.terms |= {f"ce_{name}": value for name, value in zip(self.node_names, node_losses, strict=True)}
        return branch + synergy


def node_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, multi_label: bool = False, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of every image at every node: logits B x L x K and targets (B,) or B x K to B x L."""
    if multi_label:
        expected = targets.to(logits.dtype).unsqueeze(1).expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits, expected, weight=class_weights, reduction="none").mean(2)
    repeated = targets.unsqueeze(1).expand(-1, logits.shape[1])
    return F.cross_entropy(logits.transpose(1, 2), repeated, weight=class_weights, reduction="none")


def branch_loss(entropies: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """L_b, equation 7: mean over the images of sum_l beta_l CE_l; both B x L."""
    return (beta * entropies).sum(dim=1).mean()


def deep_supervision_loss(entropies: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """L_M + L_m, equations 2 to 4: CE of the deepest node plus alpha times the others'; B x L."""
    return (entropies[:, -1] + alpha * entropies[:, :-1].sum(dim=1)).mean()


def synergy_loss(logits: torch.Tensor, multi_label: bool = False, stop_gradient: bool = True) -> torch.Tensor:
    """L_k, equation 8: mean over the images of the sum over ordered pairs p != q of KL(f_p || f_q).

    The paper prints a minus sign, which would reward disagreement; the term is a KL to be minimised. The arguments
    are those of `LSANetLoss`; logits B x L x K.
    """
    if multi_label:
        # A label is a distribution over {present, absent}: the categorical form below on 2K outcomes.
        log_f = torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=2)
    else:
        log_f = F.log_softmax(logits, dim=2)
    log_teacher = log_f.detach() if stop_gradient else log_f
    teacher = log_teacher.exp()
    # sum_pq f_p (log f_p - log f_q) = L sum_p f_p log f_p - (sum_p f_p)(sum_q log f_q); p = q adds nothing.
    own = (teacher * log_teacher).sum(dim=(1, 2))
    cross = (teacher.sum(dim=1) * log_f.sum(dim=1)).sum(dim=1)
    return (logits.shape[1] * own - cross).mean()
