"""Sections of the report on what a network says of images with a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from label_efficient.data.image_data import ImageData
from label_efficient.data.picture_transforms import to_uint8_picture
from label_efficient.evaluation.decisions import Decision
from label_efficient.evaluation.figure_tables import AT_A_THRESHOLD, operating_columns
from label_efficient.evaluation.predictions import decision_confidence
from label_efficient.report.figures import save_confusion_matrix, save_reliability, save_roc
from label_efficient.report.page import Section, figure, gallery, section, table, thumbnail
from label_efficient.run_account import Folder

NUM_HARDEST = 18
LABELS = {
    "acc": "accuracy",
    "auc": "AUC (macro, one against the rest)",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "quadratic_kappa": "quadratic kappa",
    "ece": "expected calibration error",
    "nll": "negative log-likelihood",
    "sensitivity": "sensitivity of {positive_class} at 0.5",
    "specificity": "specificity of {positive_class} at 0.5",
    "precision": "precision of {positive_class} at 0.5",
    "n": "images",
}


@dataclass(frozen=True)
class ClassifiedImages:
    """The N images that the sections show, and what the network says of them.

    Attributes:
        where: What they are, for instance "test".
        targets: (N,) class indices, or N x K of 0 and 1 for several labels an image.
        probabilities: N x K, after calibration if there was one.
        raw_probabilities: N x K, before.
        uncertainty: (N,) in 0..1.
        decision: How the class of an image was decided.
        picture: Gives an image as stored, by its position.
    """

    where: str
    classes: Sequence[str]
    files: Sequence[str]
    targets: np.ndarray
    probabilities: np.ndarray
    raw_probabilities: np.ndarray
    uncertainty: np.ndarray
    decision: Decision
    picture: Callable[[int], np.ndarray]

    @classmethod
    def of_test(cls, data: ImageData, **found: Any) -> ClassifiedImages:
        """Those of a data set's test split; the rest as of the class."""
        part = data.splits["test"]
        return cls(where="test", classes=data.classes, files=part.files, targets=part.labels, **found)

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels."""
        return self.targets.ndim == 2


def figures_section(metrics: Mapping[str, Any]) -> Section:
    """The figures of validation, test and the last epoch, and of the operating point."""
    columns = {"validation": metrics["validation"], "test": metrics["test"]}
    if "last_epoch" in metrics:
        columns[f"test, last epoch ({metrics['last_epoch']['epoch']})"] = metrics["last_epoch"]["test"]
    caption = f"Epoch {metrics['chosen_epoch']}, chosen on validation AUC"
    blocks = [figures_table(columns, LABELS, caption)]
    return section("Figures", *blocks, *operating_point_table(metrics))


def operating_point_table(metrics: Mapping[str, Any]) -> list[Any]:
    """What the operating point of a binary task reaches, in a list; an empty one without any."""
    if "operating_point" not in metrics:
        return []
    point = metrics["operating_point"]
    of, title, columns = operating_columns(point)
    rows = [[LABELS[name].format(positive_class=of).replace(" at 0.5", ""), *[c.get(name) for c in columns.values()]]
            for name in AT_A_THRESHOLD]  # fmt: skip
    how = f"{point['decides']}. The threshold is saved with calibrate=true; operating_threshold sets another."
    return [table(["", *columns], rows, title[0].upper() + title[1:]), how]


def figures_table(columns: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str], caption: str) -> Markup:
    """Figures side by side, by the title of their column; those of the labels that any column has, in that order."""
    of = next((values["positive_class"] for values in columns.values() if "positive_class" in values), "")
    rows = [
        [label.format(positive_class=of), *[values.get(name) for values in columns.values()]]
        for name, label in labels.items()
        if any(name in values for values in columns.values())
    ]
    return table(["figure", *columns], rows, caption)


def data_section(data: ImageData) -> Section:
    """Counts by class and split, and what is to be known of them."""
    rows = [[row["class"], row["train"], row["val"], row["test"]] for row in data.counts()]
    notes = [f"{data.unlabelled} training images were left without a label."] if data.unlabelled else []
    counts = table(["class", "training", "validation", "test"], rows, f"{data.source}; task: {data.task}")
    return section("Data", counts, *notes, *data.notes)


def class_section(
    folder: Folder, shown: ClassifiedImages, per_class: Sequence[Mapping[str, Any]], counts: Sequence[Sequence[int]]
) -> Section:
    """Figures by class, confusion matrix (`counts` K x K, a row a true class; not for several labels), ROC curves."""
    rows = [list(row.values()) for row in per_class]
    blocks = [table(list(per_class[0]), rows, f"By class, {shown.where}")]
    if not shown.multi_label:
        path = save_confusion_matrix(folder / "confusion_matrix.png", counts=np.asarray(counts), classes=shown.classes)
        blocks.append(figure(path, f"Confusion matrix, {shown.where}"))
    path = folder / "roc.png"
    positive = shown.decision.positive
    save_roc(path, targets=shown.targets, probabilities=shown.probabilities, classes=shown.classes, positive=positive)
    blocks.append(figure(path, f"ROC curves, {shown.where}"))
    return section("Classes", *blocks)


def calibration_section(folder: Folder, shown: ClassifiedImages, temperature: float) -> Section:
    """Reliability before and after calibration at a temperature, which is 1 without any."""
    confidence, correct = decision_confidence(shown.raw_probabilities, shown.targets, shown.multi_label)
    text, after = f"Temperature {temperature:.3f}", None
    if temperature == 1:
        text += " (calibrate=true fits one)"
    else:
        after = decision_confidence(shown.probabilities, shown.targets, shown.multi_label)[0]
    path = save_reliability(
        folder / "reliability.png", confidence=confidence, correct=correct, confidence_calibrated=after
    )
    return section("Calibration", text, figure(path, f"Reliability, {shown.where}"))


def hardest_section(shown: ClassifiedImages) -> Section:
    """The images whose true class has the least probability, with their pictures."""
    probabilities, targets = shown.probabilities, shown.targets
    if shown.multi_label:
        truth = np.where(targets == 1, probabilities, 1 - probabilities).min(axis=1)
    else:
        truth = probabilities[np.arange(len(targets)), targets]
    items = []
    for index in np.argsort(truth, kind="stable")[:NUM_HARDEST].tolist():
        if shown.multi_label:
            found = f"least probability of a true statement {truth[index]:.2f}"
        else:
            said = shown.classes[int(shown.decision(probabilities[index : index + 1])[0])]
            found = f"is {shown.classes[targets[index]]} ({truth[index]:.2f}), said {said}"
        caption = f"{shown.files[index]}: {found}, uncertainty {shown.uncertainty[index]:.2f}"
        items.append((thumbnail(to_uint8_picture(shown.picture(index))), caption))
    text = f"The {shown.where.split(',')[0]} images whose true class has the least probability."
    return section("Hardest cases", text, gallery(items))
