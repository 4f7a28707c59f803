"""Figures and `report.html` of a run of the lsanet bundle."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import _figures, _report, training_figures
from ._common import Settings
from ._predictions import decision_confidence
from .data import ImageData
from .transforms import to_uint8_picture

NUM_HARDEST = 18
_LABELS = {
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


def write_run_report(
    output_dir: Path,
    *,
    data: ImageData,
    settings: Settings,
    metrics: Mapping[str, Any],
    probabilities: np.ndarray,
    raw_probabilities: np.ndarray,
    uncertainty: np.ndarray,
    history: list[dict[str, float]],
    node_names: Sequence[str],
    max_beta_ratio: float | None,
    picture: Callable[[int], np.ndarray],
) -> None:
    """Draw the figures of a run and write its report, one page with everything in it.

    Args:
        output_dir: Folder of the run; figures go to its folder `figures`.
        data: The data set.
        settings: Of the run.
        metrics: Content of `metrics.json`.
        probabilities: Of the test images, N x K, after calibration if there was one.
        raw_probabilities: Before.
        uncertainty: Of the test images, (N,).
        history: Rows of `history.csv`; empty if only evaluated.
        node_names: Output nodes of the trained network.
        max_beta_ratio: Largest ratio of two betas that can be reached, or None.
        picture: Gives a test image as stored, by its position.
    """
    folder = output_dir / "figures"
    targets = data.splits["test"].labels
    sections = [_report.section("Figures", *_figures_table(metrics)), _data_section(data)]
    if history:
        sections.append(_training_section(folder, history, metrics, node_names, max_beta_ratio))
    sections.append(_test_section(folder, data, metrics, targets, probabilities))
    sections.append(_calibration_section(folder, data, metrics, targets, raw_probabilities, probabilities))
    sections.append(_hardest_section(data, targets, probabilities, uncertainty, picture))
    sections.append(_report.settings_section(settings, settings.changed, metrics["versions"]))
    notice = None
    if data.name == "demo":
        notice = "Synthetic demo data: these figures say that the software works, and nothing about patients."
    title = f"LSANet bundle: {settings['method']}, {settings['backbone']}, {data.name}"
    footer = "Research software, not a medical device: not for diagnosis."
    _report.write_report(output_dir / "report.html", title=title, sections=sections, notice=notice, footer=footer)


def _figures_table(metrics: Mapping[str, Any]) -> list[str]:
    columns = {"validation": metrics["validation"], "test": metrics["test"]}
    if "last_epoch" in metrics:
        columns[f"test, last epoch ({metrics['last_epoch']['epoch']})"] = metrics["last_epoch"]["test"]
    rows = [
        [label, *[values[name] for values in columns.values()]]
        for name, label in _LABELS.items()
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


def _data_section(data: ImageData) -> str:
    counts = data.counts()
    rows = [[row["class"], row["train"], row["val"], row["test"]] for row in counts]
    notes = [f"{data.unlabelled} training images were left without a label."] if data.unlabelled else []
    table = _report.table(["class", "training", "validation", "test"], rows, f"{data.source}; task: {data.task}")
    return _report.section("Data", table, *notes, *data.notes)


def _training_section(
    folder: Path,
    history: list[dict[str, float]],
    metrics: Mapping[str, Any],
    node_names: Sequence[str],
    max_beta_ratio: float | None,
) -> str:
    path = folder / "history.png"
    training_figures.save_history(path, history=history, best_epoch=metrics["chosen_epoch"])
    blocks = [_report.figure(path, "Losses and validation figures by epoch")]
    if f"train_beta_{node_names[0]}" in history[-1]:
        path = folder / "beta.png"
        training_figures.save_beta(path, history=history, nodes=list(node_names), max_ratio=max_beta_ratio)
        blocks.append(_report.figure(path, "Layer selective attention: mean and spread of beta over the images"))
    return _report.section("Training", *blocks)


def _test_section(
    folder: Path, data: ImageData, metrics: Mapping[str, Any], targets: np.ndarray, probabilities: np.ndarray
) -> str:
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


def _calibration_section(
    folder: Path,
    data: ImageData,
    metrics: Mapping[str, Any],
    targets: np.ndarray,
    raw: np.ndarray,
    calibrated: np.ndarray,
) -> str:
    confidence, correct = decision_confidence(raw, targets, data.multi_label)
    after = decision_confidence(calibrated, targets, data.multi_label)[0] if metrics["temperature"] != 1 else None
    path = folder / "reliability.png"
    _figures.save_reliability(path, confidence=confidence, correct=correct, confidence_calibrated=after)
    text = f"Temperature {metrics['temperature']:.3f}" + ("" if after is not None else " (calibrate=true fits one)")
    return _report.section("Calibration", text, _report.figure(path, "Reliability, test"))


def _hardest_section(
    data: ImageData,
    targets: np.ndarray,
    probabilities: np.ndarray,
    uncertainty: np.ndarray,
    picture: Callable[[int], np.ndarray],
) -> str:
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
