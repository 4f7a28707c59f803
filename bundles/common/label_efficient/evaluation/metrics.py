"""Figures of a classifier: MedMNIST's AUC and ACC, tables by class, calibration error.

Everywhere in this file ``targets`` are class indices ``(N,)`` (MedMNIST's ``(N, 1)`` is flattened) or 0/1
``(N, K)`` for several labels an image, and ``probabilities`` are ``(N, K)``: a softmax, or K sigmoids for
several labels. ``task`` is one of MedMNIST's task names. A class is decided as MedMNIST's ``getACC`` does:
the largest probability, or, for binary classes and single labels, a positive probability strictly above 0.5.

A figure that the data leave undefined is NaN, and so is every mean that it enters: a mean over the
remaining classes would look like the full figure.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.metrics import cohen_kappa_score, confusion_matrix, precision_recall_fscore_support, roc_auc_score

logger = logging.getLogger(__name__)

BINARY, ORDINAL, MULTI_LABEL = "binary-class", "ordinal-regression", "multi-label, binary-class"
TASKS = ("multi-class", BINARY, ORDINAL, MULTI_LABEL)

_RANGE_TOLERANCE = 1e-6  # averages of float32 probabilities pass 1 by a rounding error
_SUM_TOLERANCE = 1e-3


def auc(targets: ArrayLike, probabilities: ArrayLike, task: str) -> float:
    """Area under the ROC curve as ``medmnist.evaluator.getAUC`` computes it.

    Binary: of the second column. Otherwise the mean over classes of one against the rest, or over labels.

    Returns:
        The area, NaN where that of any class is undefined (``undefined_classes`` names them).
    """
    return float(np.mean(_class_aucs(*check_predictions(targets, probabilities, task), task)))


def accuracy(targets: ArrayLike, probabilities: ArrayLike, task: str) -> float:
    """Accuracy as ``medmnist.evaluator.getACC`` computes it; for several labels the mean over labels."""
    checked_targets, checked_probabilities = check_predictions(targets, probabilities, task)
    return float(np.mean(_decide(checked_probabilities, task) == checked_targets))


def undefined_classes(targets: ArrayLike, probabilities: ArrayLike, task: str, classes: Sequence[str]) -> list[str]:
    """Names of the classes whose AUC is undefined: no image has the class, or every image has it."""
    checked = check_predictions(targets, probabilities, task)
    _check_classes(classes, checked[1])
    return [name for name, value in zip(classes, _class_aucs(*checked, task), strict=True) if math.isnan(value)]


def summary(targets: ArrayLike, probabilities: ArrayLike, task: str, classes: Sequence[str]) -> dict[str, float]:
    """Figures over all classes.

    Args:
        targets: ``(N,)``, or ``(N, K)`` for several labels.
        probabilities: ``(N, K)``.
        task: one of MedMNIST's task names.
        classes: the K names.

    Returns:
        ``auc``, ``acc``, ``macro_f1``, ``balanced_accuracy``, ``ece``, ``nll`` and ``n``; for ordinal classes
        also ``quadratic_kappa``; for binary ones ``sensitivity`` and ``specificity`` of the second class. For
        several labels F1 and balanced accuracy are means over labels, ``ece`` and ``nll`` are over all N * K
        decisions. NaN where undefined; a warning in the log names the classes without an AUC.
    """
    checked_targets, checked_probabilities = check_predictions(targets, probabilities, task)
    _check_classes(classes, checked_probabilities)
    aucs = _class_aucs(checked_targets, checked_probabilities, task)
    undefined = [name for name, value in zip(classes, aucs, strict=True) if math.isnan(value)]
    if undefined:
        logger.warning("The AUC is undefined: no image, or every image, is of %s.", ", ".join(undefined))

    decisions = _decide(checked_probabilities, task)
    rates = _rates(checked_targets, decisions, task, len(classes))
    recall = rates["recall"]
    confidence, chosen = _confidence(checked_targets, checked_probabilities, decisions, task)
    result: dict[str, float] = {
        "auc": float(np.mean(aucs)),
        "acc": float(np.mean(decisions == checked_targets)),
        "macro_f1": float(np.mean(rates["f1"])),
        "balanced_accuracy": float(np.mean((recall + rates["specificity"]) / 2 if task == MULTI_LABEL else recall)),
        "ece": expected_calibration_error(confidence, (decisions == checked_targets).ravel()),
        "nll": float(-np.mean(np.log(np.clip(chosen, np.finfo(np.float64).eps, None)))),
        "n": len(checked_targets),
    }
    if task == ORDINAL:
        result["quadratic_kappa"] = _quadratic_kappa(checked_targets, decisions, len(classes))
    if task == BINARY:
        result["sensitivity"] = float(recall[1])
        result["specificity"] = float(rates["specificity"][1])
    return result


def per_class(targets: ArrayLike, probabilities: ArrayLike, task: str, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a class: ``class``, ``support``, ``precision``, ``recall``, ``specificity``, ``f1``, ``auc``.

    Each class against the rest; NaN where undefined (a precision without a prediction, a recall without an
    image). Both rows of a binary task carry the one AUC, that of the second column.
    """
    checked_targets, checked_probabilities = check_predictions(targets, probabilities, task)
    _check_classes(classes, checked_probabilities)
    rates = _rates(checked_targets, _decide(checked_probabilities, task), task, len(classes))
    rates["auc"] = np.array(_class_aucs(checked_targets, checked_probabilities, task))
    support = rates.pop("support")
    return [
        {"class": name, "support": int(support[k])} | {key: float(rate[k]) for key, rate in rates.items()}
        for k, name in enumerate(classes)
    ]


def confusion(targets: ArrayLike, probabilities: ArrayLike, task: str, num_classes: int) -> np.ndarray:
    """Confusion matrix: rows are the truth, columns the decision.

    Returns:
        ``(K, K)`` counts, or ``(K, 2, 2)`` for several labels: one ``[[tn, fp], [fn, tp]]`` a label.
    """
    checked_targets, checked_probabilities = check_predictions(targets, probabilities, task)
    if num_classes != checked_probabilities.shape[1]:
        raise ValueError(f"num_classes is {num_classes}, probabilities have {checked_probabilities.shape[1]}.")
    return _confusion(checked_targets, _decide(checked_probabilities, task), task, num_classes)


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over bins of equal width, weighted by their counts.

    Args:
        confidence: ``(N,)`` probabilities of the decisions. Bins are closed on the right; 0 is in the first.
        correct: ``(N,)`` whether each decision is right.
        bins: number of bins over [0, 1].
    """
    confidence, correct = _numbers("confidence", confidence), _numbers("correct", correct)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(f"confidence and correct must both be (N > 0,), got {confidence.shape} and {correct.shape}.")
    _check_range("confidence", confidence)
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("correct must be true or false (1 or 0) only.")
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a positive integer, got {bins!r}.")
    index = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _class_aucs(targets: np.ndarray, probabilities: np.ndarray, task: str) -> list[float]:
    """AUC of each of K columns, NaN where undefined; a binary task has one, given for both classes."""
    if task == BINARY:
        return [_binary_auc(targets, probabilities[:, 1])] * 2
    truth = _columns(targets, task, probabilities.shape[1])
    return [_binary_auc(*columns) for columns in zip(truth.T, probabilities.T, strict=True)]


def _binary_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    return math.nan if (truth == truth[0]).all() else float(roc_auc_score(truth, scores))


def _decide(probabilities: np.ndarray, task: str) -> np.ndarray:
    """Decided classes ``(N,)``, or 0/1 ``(N, K)`` for several labels."""
    if task == MULTI_LABEL:
        return (probabilities > 0.5).astype(np.int64)
    if task == BINARY:
        return (probabilities[:, 1] > 0.5).astype(np.int64)
    return probabilities.argmax(axis=1)


def _confusion(targets: np.ndarray, decisions: np.ndarray, task: str, num_classes: int) -> np.ndarray:
    if task == MULTI_LABEL:
        columns = zip(targets.T, decisions.T, strict=True)
        return np.stack([confusion_matrix(truth, decided, labels=[0, 1]) for truth, decided in columns])
    return confusion_matrix(targets, decisions, labels=range(num_classes))


def _columns(values: np.ndarray, task: str, num_classes: int) -> np.ndarray:
    """Class indices ``(N,)``, or 0/1 ``(N, K)``, as one column of truth values a class, ``(N, K)``."""
    return values == 1 if task == MULTI_LABEL else values[:, None] == np.arange(num_classes)


def _rates(targets: np.ndarray, decisions: np.ndarray, task: str, num_classes: int) -> dict[str, np.ndarray]:
    """Rates and support ``(K,)`` of every class against the rest, NaN for 0 / 0."""
    truth, decided = (_columns(values, task, num_classes) for values in (targets, decisions))
    by_class = [
        precision_recall_fscore_support(*columns, labels=[0, 1], zero_division=np.nan)
        for columns in zip(truth.T, decided.T, strict=True)
    ]
    (_, precision), (specificity, recall), (_, f1), (_, support) = np.array(by_class).transpose(1, 2, 0)
    return {"support": support, "precision": precision, "recall": recall, "specificity": specificity, "f1": f1}


def _quadratic_kappa(targets: np.ndarray, decisions: np.ndarray, num_classes: int) -> float:
    """Cohen's kappa with quadratic weights, NaN where chance alone cannot disagree."""
    if len(np.union1d(targets, decisions)) == 1:
        return math.nan
    return float(cohen_kappa_score(targets, decisions, labels=range(num_classes), weights="quadratic"))


def _confidence(
    targets: np.ndarray, probabilities: np.ndarray, decisions: np.ndarray, task: str
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of what was decided and of what is true, over images, or over images and labels."""
    if task == MULTI_LABEL:
        both = np.stack([1 - probabilities, probabilities])  # (2, N, K): of absent, of present
        return np.choose(decisions, both).ravel(), np.choose(targets, both).ravel()
    rows = np.arange(len(targets))
    return probabilities[rows, decisions], probabilities[rows, targets]


def check_predictions(targets: ArrayLike, probabilities: ArrayLike, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Targets as int64 ``(N,)`` or ``(N, K)`` and probabilities as float64 ``(N, K)``, or a ValueError."""
    check_task(task)
    scores = _numbers("probabilities", probabilities)
    multi_label = task == MULTI_LABEL
    columns = {BINARY: "2", MULTI_LABEL: "K >= 1"}.get(task, "K >= 2")
    width = scores.shape[1] if scores.ndim == 2 else 0
    if scores.ndim != 2 or not len(scores) or width < 2 - multi_label or (task == BINARY and width != 2):
        raise ValueError(f"probabilities must be (N > 0, {columns}) for {task!r}, got {scores.shape}.")
    _check_range("probabilities", scores)
    if not multi_label:
        off = np.abs(scores.sum(axis=1) - 1)
        if off.max() > _SUM_TOLERANCE:
            row = int(off.argmax())
            raise ValueError(
                f"Rows of probabilities must sum to 1 within {_SUM_TOLERANCE} for {task!r}, "
                f"row {row} sums to {scores[row].sum():.6g}."
            )

    labels = _numbers("targets", targets)
    arrived = labels.shape
    if not multi_label and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    expected = scores.shape if multi_label else (len(scores),)
    if labels.shape != expected:
        raise ValueError(f"targets must be {expected} for {task!r} and probabilities {scores.shape}, got {arrived}.")
    highest = 1 if multi_label else width - 1
    wrong = labels[(labels != np.round(labels)) | (labels < 0) | (labels > highest)]
    if len(wrong):
        raise ValueError(f"targets must be whole numbers from 0 to {highest} for {task!r}, got {wrong[0]:g}.")
    return labels.astype(np.int64), scores


def check_task(task: str) -> None:
    """Refuse what is none of MedMNIST's task names."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}.")


def _check_classes(classes: Sequence[str], probabilities: np.ndarray) -> None:
    if isinstance(classes, str) or len(classes) != probabilities.shape[1]:
        raise ValueError(f"classes must be {probabilities.shape[1]} names, got {classes!r}.")


def _check_range(name: str, values: np.ndarray) -> None:
    if values.min() < -_RANGE_TOLERANCE or values.max() > 1 + _RANGE_TOLERANCE:
        raise ValueError(f"{name} must be within [0, 1], got {values.min():.6g} to {values.max():.6g}.")


def _numbers(name: str, values: Any) -> np.ndarray:
    """A float64 array of finite numbers, from anything array-like, a tensor on any device included."""
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {type(values).__name__}: {error}") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} NaN or infinite values.")
    return array
