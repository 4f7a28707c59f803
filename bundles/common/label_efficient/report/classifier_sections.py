"""Sections of the report of a classifier's run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.image_data import ImageData
from label_efficient.data.picture_transforms import to_uint8_picture
from label_efficient.evaluation.predictions import decision_confidence
from label_efficient.report import figures as _figures
from label_efficient.report import page as _report

NUM_HARDEST = 18
LABELS = {
    "acc": "accuracy",
    "auc": "AUC (macro, one against the rest)",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "quadratic_kappa": "quadratic kappa",
    "ece": "expected calibration error",
    "nll": "negative log-likelihood",
    "sensitivity": "sensitivity at 0.5",
    "specificity": "specificity at 0.5",
    "n": "images",
}


def figures_table(metrics: Mapping[str, Any]) -> list[str]:
    """The figures of validation, test and the last epoch, and of the operating point: blocks of a section."""
    columns = {"validation": metrics["validation"], "test": metrics["test"]}
    if "last_epoch" in metrics:
        columns[f"test, last epoch ({metrics['last_epoch']['epoch']})"] = metrics["last_epoch"]["test"]
    rows = [
        [label, *[values[name] for values in columns.values()]]
        for name, label in LABELS.items()
        if name in metrics["test"]
    ]
    caption = f"Epoch {metrics['chosen_epoch']}, chosen on validation AUC"
    blocks: list[str] = [_report.table(["figure", *columns], rows, caption)]
    if "operating_point" in metrics:
        point, found = metrics["operating_point"]["validation"], metrics["operating_point"]["test"]
        header = ["", "validation", "test"]
        rows = [[name, point[name], found[name]] for name in ("sensitivity", "specificity")]
        caption = (
            f"Threshold {point['threshold']:.4f}, chosen on validation for a specificity of at least "
            f"{point['target_specificity']}"
        )
        blocks.append(_report.table(header, rows, caption))
    return blocks


def data_section(data: ImageData) -> str:
    """Counts by class and split, and what is to be known of them."""
    counts = data.counts()
    rows = [[row["class"], row["train"], row["val"], row["test"]] for row in counts]
    notes = [f"{data.unlabelled} training images were left without a label."] if data.unlabelled else []
    table = _report.table(["class", "training", "validation", "test"], rows, f"{data.source}; task: {data.task}")
    return _report.section("Data", table, *notes, *data.notes)


def test_section(
    folder: Path, data: ImageData, metrics: Mapping[str, Any], targets: np.ndarray, probabilities: np.ndarray
) -> str:
    """Figures by class, confusion matrix and ROC curves of the test images."""
    rows = metrics["test_per_class"]
    blocks = [_report.table(list(rows[0]), [list(row.values()) for row in rows], "By class")]
    if not data.multi_label:
        path = folder / "confusion_matrix.png"
        _figures.save_confusion_matrix(path, counts=np.asarray(metrics["test_confusion"]), classes=data.classes)
        blocks.append(_report.figure(path, "Confusion matrix, test"))
    path = folder / "roc.png"
    _figures.save_roc(path, targets=targets, probabilities=probabilities, classes=data.classes)
    blocks.append(_report.figure(path, "ROC curves, test"))
    return _report.section("Test", *blocks)


def calibration_section(
    folder: Path,
    data: ImageData,
    metrics: Mapping[str, Any],
    targets: np.ndarray,
    raw: np.ndarray,
    calibrated: np.ndarray,
) -> str:
    """Reliability of the test images, before and after calibration."""
    confidence, correct = decision_confidence(raw, targets, data.multi_label)
    after = decision_confidence(calibrated, targets, data.multi_label)[0] if metrics["temperature"] != 1 else None
    path = folder / "reliability.png"
    _figures.save_reliability(path, confidence=confidence, correct=correct, confidence_calibrated=after)
    text = f"Temperature {metrics['temperature']:.3f}" + ("" if after is not None else " (calibrate=true fits one)")
    return _report.section("Calibration", text, _report.figure(path, "Reliability, test"))


def hardest_section(
    data: ImageData,
    targets: np.ndarray,
    probabilities: np.ndarray,
    uncertainty: np.ndarray,
    picture: Callable[[int], np.ndarray],
) -> str:
    """The test images whose true class has the least probability, with their pictures."""
    if data.multi_label:
        truth = np.where(targets == 1, probabilities, 1 - probabilities).min(axis=1)
    else:
        truth = probabilities[np.arange(len(targets)), targets]
    items = []
    for index in np.argsort(truth, kind="stable")[:NUM_HARDEST]:
        said = data.classes[int(probabilities[index].argmax())]
        name = data.splits["test"].files[index]
        if data.multi_label:
            caption = f"{name}: least probability of a true statement {truth[index]:.2f}"
        else:
            caption = f"{name}: is {data.classes[targets[index]]} ({truth[index]:.2f}), said {said}"
        items.append(
            (
                _report.thumbnail(to_uint8_picture(picture(int(index)))),
                f"{caption}, uncertainty {uncertainty[index]:.2f}",
            )
        )
    text = "The test images whose true class has the least probability."
    return _report.section("Hardest cases", text, _report.gallery(items))
