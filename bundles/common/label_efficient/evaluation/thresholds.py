"""Operating points of a binary classifier: a threshold is chosen on validation data and applied to others."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import precision_score, recall_score

from label_efficient.evaluation.metrics import BINARY, arrays


def threshold_at_specificity(
    targets: ArrayLike, probabilities: ArrayLike, specificity: float, positive: int = 1
) -> dict[str, float]:
    """Smallest threshold that reaches a specificity, to be chosen on validation data.

    An image is positive where its probability of the `positive` class is at least the threshold. That lies halfway
    between two probabilities seen, so that rounding in another program decides no image otherwise; where even the
    largest leaves too many false positives it is the number just above it, at which no image is positive. `targets`
    (N,) and `probabilities` N x 2 as of `metrics`.

    Returns:
        `threshold`, and the figures of `at_threshold` on these data.

    Raises:
        ValueError: If a class is absent.
    """
    truth, scores = arrays(targets, probabilities, BINARY)
    negatives = np.sort(scores[truth != positive, positive])
    if len(negatives) in (0, len(scores)):
        raise ValueError(f"Both classes are needed to choose a threshold, all targets are {truth[0]}.")
    candidates = np.unique(scores[:, positive])
    candidates = np.append(candidates, np.nextafter(candidates[-1], np.inf))
    place = int(np.argmax(np.searchsorted(negatives, candidates, side="left") / len(negatives) >= specificity))
    threshold = candidates[place]
    if 0 < place < len(candidates) - 1:
        between = (candidates[place - 1] + threshold) / 2
        threshold = between if between > candidates[place - 1] else threshold
    return {"threshold": float(threshold)} | at_threshold(targets, probabilities, float(threshold), positive)


def at_threshold(targets: ArrayLike, probabilities: ArrayLike, threshold: float, positive: int = 1) -> dict[str, float]:
    """Figures at a threshold chosen beforehand: `sensitivity`, `specificity`, `precision` and `acc`.

    NaN where undefined: that of an absent class, a precision without a positive image.
    """
    truth, scores = arrays(targets, probabilities, BINARY)
    true, said = truth == positive, scores[:, positive] >= threshold
    sensitivity, specificity = recall_score(true, said, labels=[True, False], average=None, zero_division=np.nan)
    precision = precision_score(true, said, zero_division=np.nan)
    return {
        "sensitivity": float(sensitivity),
        "specificity": float(specificity),
        "precision": float(precision),
        "acc": float(np.mean(true == said)),
    }
