"""Operating points of a binary classifier: a threshold is chosen on validation data and applied to others."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import recall_score

from label_efficient.evaluation.metrics import BINARY, arrays


def threshold_at_specificity(targets: ArrayLike, probabilities: ArrayLike, specificity: float) -> dict[str, float]:
    """Smallest threshold that reaches a specificity, to be chosen on validation data.

    An image is positive where its probability of the second class is at least the threshold. Candidates are
    the probabilities seen, as in a ROC curve; where even the largest leaves too many false positives, the
    number just above it, at which no image is positive. `targets` (N,) and `probabilities` N x 2 as of `metrics`.

    Returns:
        `threshold`, and the `sensitivity` and `specificity` that it has on these data.

    Raises:
        ValueError: If a class is absent.
    """
    truth, scores = arrays(targets, probabilities, BINARY)
    negatives = np.sort(scores[truth == 0, 1])
    if len(negatives) in (0, len(scores)):
        raise ValueError(f"Both classes are needed to choose a threshold, all targets are {truth[0]}.")
    candidates = np.unique(scores[:, 1])
    candidates = np.append(candidates, np.nextafter(candidates[-1], np.inf))
    reached = np.searchsorted(negatives, candidates, side="left") / len(negatives) >= specificity
    threshold = float(candidates[np.argmax(reached)])
    return {"threshold": threshold} | sensitivity_specificity(targets, probabilities, threshold)


def sensitivity_specificity(targets: ArrayLike, probabilities: ArrayLike, threshold: float) -> dict[str, float]:
    """Sensitivity and specificity of a threshold chosen beforehand, NaN for that of an absent class."""
    truth, scores = arrays(targets, probabilities, BINARY)
    positive = scores[:, 1] >= threshold
    sides = recall_score(truth, positive, labels=[1, 0], average=None, zero_division=np.nan)
    return dict(zip(("sensitivity", "specificity"), sides.tolist(), strict=True))
