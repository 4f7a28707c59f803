"""Figures and `report.html` of a run of the gated attention bundle."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from label_efficient.evaluation.decisions import Decision
from label_efficient.evaluation.outputs import Outcome
from label_efficient.report.bundle_page import RunPage
from label_efficient.report.classifier_sections import (
    LABELS,
    ClassifiedImages,
    calibration_section,
    class_section,
    data_section,
    figures_section,
    figures_table,
    hardest_section,
)
from label_efficient.report.page import Section, figure, gallery, section, table, thumbnail
from label_efficient.run_account import Folder
from label_efficient.run_folder import RunFolder

from .coverage import CoverageResult, save_coverage
from .instance_figures import InstancePictures, save_picture
from .training_figures import draw_training

NUM_LOOKED_AT = 12


def write_run_report(
    run_folder: RunFolder,
    *,
    raw: Outcome,
    calibrated: Outcome,
    looked: Mapping[str, torch.Tensor],
    decision: Decision,
    instance_pictures: InstancePictures,
    coverage: CoverageResult | None,
    picture: Callable[[int], np.ndarray],
    **run: Any,
) -> None:
    """Draw the figures of a run and write its report, one page with everything in it.

    `raw` and `calibrated` are what the network says of the test images before and after calibration, `looked` their
    attention and instances (see `shipped.look_at`); `picture` gives a test image as stored, by its position; `run` is
    as of `RunPage`.
    """
    page = RunPage(run_folder, **run)
    folder, settings, metrics = page.folder, page.settings, page.metrics
    shown = ClassifiedImages.of_test(
        page.data,
        probabilities=calibrated.probabilities,
        raw_probabilities=raw.probabilities,
        uncertainty=calibrated.uncertainty,
        decision=decision,
        picture=picture,
    )
    sections = [figures_section(metrics), data_section(page.data), *page.training(draw_training)]
    if settings["method"] == "fusion":
        sections.append(_branches_section(metrics))
    sections.append(class_section(folder, shown, metrics["test_per_class"], metrics["test_confusion"]))
    sections.append(_attention_section(folder, shown, looked, instance_pictures))
    if coverage is not None:
        sections.append(_coverage_section(folder, coverage, metrics["coverage"]["remarks"]))
    page.write(
        f"Gated attention bundle: {settings['method']}, {settings['attention']}",
        [*sections, calibration_section(folder, shown, metrics["temperature"]), hardest_section(shown)],
    )


def _branches_section(metrics: Mapping[str, Any]) -> Section:
    """Fusion and global branch side by side, over all test images and by class."""
    branches = {"fusion": metrics["test"], "global branch": metrics["test_global"]}
    overall = figures_table(branches, LABELS, "Test; the fusion is the prediction")
    pairs = zip(metrics["test_per_class"], metrics["test_global_per_class"], strict=True)
    names = [name for name in metrics["test_per_class"][0] if name not in ("class", "n")]
    header = ["class", *[f"{name}, {branch}" for name in names for branch in ("fusion", "global")]]
    by_class = [[one["class"], *[row[name] for name in names for row in (one, other)]] for one, other in pairs]
    return section("Fusion and global branch", overall, table(header, by_class, "By class"))


def _attention_section(
    folder: Folder, shown: ClassifiedImages, looked: Mapping[str, torch.Tensor], instance_pictures: InstancePictures
) -> Section:
    """Where the network looked in some test images of every class, in turn."""
    classes, targets = shown.classes, shown.targets
    order = [np.flatnonzero(targets == k) for k in range(len(classes))]
    turns = [int(of_class[turn]) for turn in range(NUM_LOOKED_AT) for of_class in order if turn < len(of_class)]
    items, pictures = [], []
    for index in turns[:NUM_LOOKED_AT]:
        image = torch.from_numpy(shown.picture(index)).permute(2, 0, 1)
        drawn = instance_pictures.draw(image, {name: value[index] for name, value in looked.items()}, 512)
        pictures.append(drawn)
        said = classes[int(shown.decision(shown.probabilities[index : index + 1])[0])]
        caption = f"{shown.files[index]}: is {classes[targets[index]]}, said {said}"
        items.append((thumbnail(np.asarray(drawn), 900), caption))
    save_picture(folder / "attention.png", _stacked(pictures[: len(classes)]))
    text = "Heat: attention of the global branch. Line: its thresholded mask. Boxes: instances, most attention first."
    return section("Where the network looks", text, gallery(items))


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def _coverage_section(folder: Folder, coverage: CoverageResult, remarks: Sequence[str]) -> Section:
    path = folder / "coverage.png"
    save_coverage(path, result=coverage)
    rows = coverage.rows()
    text = (
        "A reference box counts as covered if at least half of its area is in the attention mask. Beside it: the share "
        "of the image that the mask takes, and the share of boxes covered when the same mask is moved to random places."
    )
    boxes = table(list(rows[0]), [list(row.values()) for row in rows], "Reference boxes, test")
    return section("Coverage", text, boxes, *remarks, figure(path, "Coverage of the reference boxes"))
