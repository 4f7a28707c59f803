"""`predictions.csv`: one line an image."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def prediction_rows(
    *,
    files: Sequence[str],
    classes: Sequence[str],
    probabilities: np.ndarray | None,
    uncertainty: Sequence[float] | np.ndarray,
    multi_label: bool = False,
    labels: np.ndarray | None = None,
    errors: Sequence[str] | None = None,
    decide: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """Rows with file, label (if known), pred (name of the class), p_<class> for every class, uncertainty, error.

    Args:
        files: N names.
        classes: K names.
        probabilities: N x K, or None where nothing tells the classes: without pred and p_<class> then.
        uncertainty: (N,), 0..1.
        multi_label: Whether an image can have several labels: `pred` has the names of those with p > 0.5, joined by
            "; ", or is "none".
        labels: Class indices (N,), or 0/1 N x K.
        errors: For every file what was wrong with it, or "". A file with an error has no prediction.
        decide: Probabilities to class indices, see `decisions.Decision`; by default the most probable class.
    """
    rows = []
    decided: Any = None
    if probabilities is not None:
        decided = (
            probabilities > 0.5 if multi_label else decide(probabilities) if decide else probabilities.argmax(axis=1)
        )
    for index, file in enumerate(files):
        row: dict[str, Any] = {"file": file}
        if labels is not None:
            row["label"] = _names(labels[index], classes)
        error = errors[index] if errors is not None else ""
        if probabilities is not None:
            p = probabilities[index]
            row["pred"] = "" if error else _names(decided[index], classes)
            row.update({f"p_{name}": "" if error else f"{p[k]:.6f}" for k, name in enumerate(classes)})
        row["uncertainty"] = "" if error else f"{uncertainty[index]:.6f}"
        row["error"] = error
        rows.append(row)
    return rows


def _names(label: Any, classes: Sequence[str]) -> str:
    if np.ndim(label) == 0:
        return classes[int(label)]
    return "; ".join(name for name, present in zip(classes, label, strict=True) if present) or "none"


def normalised_entropy(probabilities: torch.Tensor, multi_label: bool = False) -> torch.Tensor:
    """Entropy of predictions ... x K, 0 (certain) to 1 (uniform); for multi-label the mean over labels."""
    if multi_label:
        both = torch.stack([probabilities, 1 - probabilities], dim=-1)
        return torch.special.entr(both).sum(dim=-1).mean(dim=-1) / math.log(2)
    return torch.special.entr(probabilities).sum(dim=-1) / math.log(probabilities.shape[-1])


def decision_confidence(
    probabilities: np.ndarray, targets: np.ndarray, multi_label: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each decision, and whether it is right; over images, or over images and labels."""
    if multi_label:
        decided = probabilities > 0.5
        return np.where(decided, probabilities, 1 - probabilities).ravel(), (decided == targets).ravel()
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
