"""Operating points of a binary classifier: a threshold is chosen on validation data and applied to others."""

import math

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import recall_score

from label_efficient.evaluation.metrics import BINARY, check_predictions


def threshold_at_specificity(targets: ArrayLike, probabilities: ArrayLike, specificity: float) -> dict[str, float]:
    """Smallest threshold that reaches a specificity, to be chosen on validation data.

    An image is positive where its probability of the second class is at least the threshold. Candidates are
    the probabilities seen, as in a ROC curve; where even the largest leaves too many false positives, the
    number just above it, at which no image is positive.

    Args:
        targets: ``(N,)``, both classes present.
        probabilities: ``(N, 2)``.
        specificity: the least specificity wanted, between 0 and 1, both excluded.

    Returns:
        ``threshold``, and the ``sensitivity`` and ``specificity`` that it has on these data.
    """
    if not 0 < specificity < 1:
        raise ValueError(f"specificity must be between 0 and 1, both excluded, got {specificity}.")
    checked_targets, checked_probabilities = check_predictions(targets, probabilities, BINARY)
    scores = checked_probabilities[:, 1]
    negatives = np.sort(scores[checked_targets == 0])
    if len(negatives) in (0, len(scores)):
        raise ValueError(f"Both classes are needed to choose a threshold, all targets are {checked_targets[0]}.")
    candidates = np.unique(scores)
    candidates = np.append(candidates, np.nextafter(candidates[-1], np.inf))
    reached = np.searchsorted(negatives, candidates, side="left") / len(negatives) >= specificity
    threshold = float(candidates[np.argmax(reached)])
    return {"threshold": threshold} | sensitivity_specificity(targets, probabilities, threshold)


def sensitivity_specificity(targets: ArrayLike, probabilities: ArrayLike, threshold: float) -> dict[str, float]:
    """Sensitivity and specificity of a threshold chosen beforehand: positive is at least the threshold.

    Args:
        targets: ``(N,)``.
        probabilities: ``(N, 2)``.
        threshold: as ``threshold_at_specificity`` returns it.

    Returns:
        ``sensitivity`` and ``specificity``, NaN for that of an absent class.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}.")
    checked_targets, checked_probabilities = check_predictions(targets, probabilities, BINARY)
    positive = checked_probabilities[:, 1] >= threshold
    sides = recall_score(checked_targets, positive, labels=[1, 0], average=None, zero_division=np.nan)
    return dict(zip(("sensitivity", "specificity"), sides.tolist(), strict=True))
