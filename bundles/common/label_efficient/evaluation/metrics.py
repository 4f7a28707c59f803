"""Figures of a classifier: MedMNIST's AUC and ACC, tables by class, calibration error.

Everywhere in this file `targets` are class indices (N,) (MedMNIST's N x 1 is flattened) or 0/1 N x K for several labels
an image, and `probabilities` are N x K: a softmax, or K sigmoids for several labels. `task` is one of MedMNIST's task
names. A class is decided as MedMNIST's `getACC` does: the largest probability, or, for binary classes and single
labels, a positive probability strictly above 0.5.

A figure that the data leave undefined is NaN, and so is every mean that it enters: one over the rest would look full.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import cohen_kappa_score, confusion_matrix, precision_recall_fscore_support, roc_auc_score

from label_efficient.evaluation.predictions import decision_confidence

logger = logging.getLogger(__name__)

BINARY, ORDINAL, MULTI_LABEL = "binary-class", "ordinal-regression", "multi-label, binary-class"
ONE_CLASS = 0.95  # share of the decisions from which on they are nearly all of one class
TASKS = ("multi-class", BINARY, ORDINAL, MULTI_LABEL)


def auc(targets: ArrayLike, probabilities: ArrayLike, task: str) -> float:
    """Area under the ROC curve as `medmnist.evaluator.getAUC` computes it.

    Binary: of the second column. Otherwise the mean over classes of one against the rest, or over labels. NaN where
    that of any class is undefined (`undefined_classes` names them).
    """
    return float(np.mean(_class_aucs(*arrays(targets, probabilities, task), task)))


def accuracy(targets: ArrayLike, probabilities: ArrayLike, task: str) -> float:
    """Accuracy as `medmnist.evaluator.getACC` computes it; for several labels the mean over labels."""
    truth, scores = arrays(targets, probabilities, task)
    return float(np.mean(_decide(scores, task) == truth))


def undefined_classes(targets: ArrayLike, probabilities: ArrayLike, task: str, classes: Sequence[str]) -> list[str]:
    """Names of the classes whose AUC is undefined: no image has the class, or every image has it."""
    values = _class_aucs(*arrays(targets, probabilities, task), task)
    return [name for name, value in zip(classes, values, strict=True) if math.isnan(value)]


def summary(
    targets: ArrayLike, probabilities: ArrayLike, task: str, classes: Sequence[str], positive: int = 1
) -> dict[str, Any]:
    """Figures over all classes, whose K names the log may need.

    Returns:
        `auc`, `acc`, `macro_f1`, `balanced_accuracy`, `ece`, `nll` and `n`; for ordinal classes also `quadratic_kappa`;
        for binary ones `sensitivity`, `specificity` and `precision` of the `positive_class`, which is at the index
        `positive`. For several labels F1 and balanced accuracy are means over labels, `ece` and `nll` are over all
        N * K decisions. NaN where undefined; a warning in the log names the classes without an AUC.
    """
    truth, scores = arrays(targets, probabilities, task)
    area = auc(truth, scores, task)
    if math.isnan(area):
        undefined = undefined_classes(truth, scores, task, classes)
        logger.warning("The AUC is undefined: no image, or every image, is of %s.", ", ".join(undefined))
    decisions = _decide(scores, task)
    rates = _rates(truth, decisions, task, len(classes))
    recall, specificity = rates["recall"], rates["specificity"]
    of_truth = np.where(truth, scores, 1 - scores) if task == MULTI_LABEL else scores[np.arange(len(truth)), truth]
    result: dict[str, Any] = {
        "auc": area,
        "acc": float(np.mean(decisions == truth)),
        "macro_f1": float(np.mean(rates["f1"])),
        "balanced_accuracy": float(np.mean((recall + specificity) / 2 if task == MULTI_LABEL else recall)),
        "ece": expected_calibration_error(*decision_confidence(scores, truth, task == MULTI_LABEL)),
        "nll": float(-np.mean(np.log(np.clip(of_truth.ravel(), np.finfo(np.float64).eps, None)))),
        "n": len(truth),
    }
    if task == ORDINAL:
        # Undefined where chance alone cannot disagree.
        alike = len(np.union1d(truth, decisions)) == 1
        labels = range(len(classes))
        kappa = math.nan if alike else cohen_kappa_score(truth, decisions, labels=labels, weights="quadratic")
        result["quadratic_kappa"] = float(kappa)
    if task == BINARY:
        named = {"sensitivity": recall, "specificity": specificity, "precision": rates["precision"]}
        result["positive_class"] = classes[positive]
        result |= {name: float(rate[positive]) for name, rate in named.items()}
    return result


def one_class_remark(targets: np.ndarray, decided: np.ndarray, classes: Sequence[str]) -> str:
    """What to say of decisions (N,) that are nearly all of one class, and miss most of the others; else nothing.

    Nearly all are 95 %: a set that has so few images of the other classes makes the same accuracy of saying always the
    same, and a mean over its images does not show that the rest is missed.
    """
    said = int(np.bincount(decided).argmax())
    share, others = float(np.mean(decided == said)), targets != said
    missed = int(np.sum(decided[others] == said))
    if share < ONE_CLASS or not others.any() or 2 * missed <= others.sum():
        return ""
    most = int(np.bincount(targets).argmax())
    return (
        f"{share:.1%} of {len(targets)} images are called {classes[said]!r}, {missed} of the {others.sum()} images of "
        f"other classes too. Accuracy {np.mean(decided == targets):.3f}; always saying {classes[most]!r}, the "
        f"commonest class, has {np.mean(targets == most):.3f}"
    )


def per_class(targets: ArrayLike, probabilities: ArrayLike, task: str, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a class: `class`, `support`, `precision`, `recall`, `specificity`, `f1`, `auc`.

    Each class against the rest; NaN where undefined (a precision without a prediction, a recall without an
    image). Both rows of a binary task carry the one AUC, that of the second column.
    """
    truth, scores = arrays(targets, probabilities, task)
    rates = _rates(truth, _decide(scores, task), task, len(classes))
    rates["auc"] = np.array(_class_aucs(truth, scores, task))
    support = rates.pop("support")
    return [
        {"class": name, "support": int(support[k])} | {key: float(rate[k]) for key, rate in rates.items()}
        for k, name in enumerate(classes)
    ]


def confusion(targets: ArrayLike, probabilities: ArrayLike, task: str) -> np.ndarray:
    """Counts K x K, a row a true class, a column a decided one; for several labels K times [[tn, fp], [fn, tp]]."""
    truth, scores = arrays(targets, probabilities, task)
    decisions = _decide(scores, task)
    if task == MULTI_LABEL:
        return np.stack([confusion_matrix(*pair, labels=[0, 1]) for pair in zip(truth.T, decisions.T, strict=True)])
    return confusion_matrix(truth, decisions, labels=range(scores.shape[1]))


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins of equal width, weighted by their counts.

    Of N decisions their probabilities, and whether they are right. Bins are closed on the right; 0 is in the first.
    """
    index = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def arrays(targets: ArrayLike, probabilities: ArrayLike, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Targets int64 (N,) or N x K, probabilities float64 N x K; a ValueError if not of the same images or no such."""
    truth, scores = np.asarray(targets).astype(np.int64), np.asarray(probabilities, dtype=np.float64)
    if task != MULTI_LABEL:
        truth = truth.reshape(len(truth))
    if truth.shape != scores.shape[: truth.ndim] or not len(truth):
        raise ValueError(f"targets {truth.shape} and probabilities {scores.shape} are not of the same images")
    # Not only of numbers that are none: logits, too, would give figures that look right.
    if not ((scores > -1e-6) & (scores < 1 + 1e-6)).all():
        raise ValueError(f"probabilities must be within [0, 1], got {scores.min():.6g} to {scores.max():.6g}")
    return truth, scores


def _class_aucs(targets: np.ndarray, probabilities: np.ndarray, task: str) -> list[float]:
    """AUC of each of K columns, NaN where undefined; a binary task has one, given for both classes."""
    if task == BINARY:
        return [_binary_auc(targets, probabilities[:, 1])] * 2
    truth = _columns(targets, task, probabilities.shape[1])
    return [_binary_auc(*columns) for columns in zip(truth.T, probabilities.T, strict=True)]


def _binary_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    return math.nan if (truth == truth[0]).all() else float(roc_auc_score(truth, scores))


def _decide(probabilities: np.ndarray, task: str) -> np.ndarray:
    """Decided classes (N,), or 0/1 N x K for several labels."""
    if task == MULTI_LABEL:
        return (probabilities > 0.5).astype(np.int64)
    if task == BINARY:
        return (probabilities[:, 1] > 0.5).astype(np.int64)
    return probabilities.argmax(axis=1)


def _columns(values: np.ndarray, task: str, num_classes: int) -> np.ndarray:
    """Class indices (N,), or 0/1 N x K, as one column of truth values a class, N x K."""
    return values == 1 if task == MULTI_LABEL else values[:, None] == np.arange(num_classes)


def _rates(targets: np.ndarray, decisions: np.ndarray, task: str, num_classes: int) -> dict[str, np.ndarray]:
    """Rates and support (K,) of every class against the rest, NaN for 0 / 0."""
    truth, decided = (_columns(values, task, num_classes) for values in (targets, decisions))
    by_class = [
        precision_recall_fscore_support(*columns, labels=[0, 1], zero_division=np.nan)
        for columns in zip(truth.T, decided.T, strict=True)
    ]
    (_, precision), (specificity, recall), (_, f1), (_, support) = np.array(by_class).transpose(1, 2, 0)
    f1[support == 0] = np.nan  # 0 for scikit-learn, if anything was called so
    return {"support": support, "precision": precision, "recall": recall, "specificity": specificity, "f1": f1}
