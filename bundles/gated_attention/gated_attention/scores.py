"""What the figures of an epoch are computed from."""

from collections.abc import Mapping
from typing import Any

import torch


def probabilities_and_targets(output: Mapping[str, Any], branch: str = "fusion") -> tuple[torch.Tensor, torch.Tensor]:
    """Engine output with `pred` (of `network.GatedAttentionNet`) and `label` to probabilities B x N and targets.

    The branch is "fusion", the prediction (of a network without one, the global branch), or "global".
    """
    pred = output["pred"]
    logits = pred["logits"] if branch == "fusion" and "logits" in pred else pred["global_logits"]
    return torch.softmax(logits.float(), dim=1), output["label"]
