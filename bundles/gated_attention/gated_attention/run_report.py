"""Figures and `report.html` of a run of the gated attention bundle."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from label_efficient.data.image_data import ImageData
from label_efficient.evaluation.classifier import Outcome
from label_efficient.report import classifier_sections as _classifier_report
from label_efficient.report import page as _report
from label_efficient.settings import Settings

from . import training_figures
from .coverage import CoverageResult, save_coverage
from .instance_figures import InstancePictures, save_picture

NUM_LOOKED_AT = 12


def write_run_report(
    output_dir: Path,
    *,
    data: ImageData,
    settings: Settings,
    metrics: Mapping[str, Any],
    raw: Outcome,
    calibrated: Outcome,
    looked: Mapping[str, torch.Tensor],
    instance_pictures: InstancePictures,
    coverage: CoverageResult | None,
    history: list[dict[str, float]],
    picture: Callable[[int], np.ndarray],
) -> None:
    """Draw the figures of a run and write its report, one page with everything in it.

    Args:
        output_dir: Folder of the run; figures go to its folder `figures`.
        data: The data set.
        settings: Of the run.
        metrics: Content of `metrics.json`.
        raw: What the network says of the test images, before calibration.
        calibrated: After.
        looked: Attention and instances of the test images, see `shipped.look_at`.
        instance_pictures: Draws them.
        coverage: Of reference boxes, or None.
        history: Rows of `history.csv`; empty if only evaluated.
        picture: Gives a test image as stored, by its position.
    """
    folder = output_dir / "figures"
    found = (calibrated.targets, calibrated.probabilities)
    sections = [
        _report.section("Figures", *_classifier_report.figures_table(metrics)),
        _classifier_report.data_section(data),
    ]
    if history:
        sections.append(_training_section(folder, history, metrics, settings))
    if settings["method"] == "fusion":
        sections.append(_branches_section(metrics))
    sections.append(_classifier_report.test_section(folder, data, metrics, *found))
    sections.append(_attention_section(folder, data, calibrated, looked, instance_pictures, picture))
    if coverage is not None:
        sections.append(_coverage_section(folder, coverage, metrics))
    sections.append(
        _classifier_report.calibration_section(
            folder, data, metrics, calibrated.targets, raw.probabilities, calibrated.probabilities
        )
    )
    sections.append(_classifier_report.hardest_section(data, *found, calibrated.uncertainty, picture))
    sections.append(_report.settings_section(settings, settings.changed, metrics["versions"]))
    notice = None
    if data.name == "demo":
        notice = "Synthetic demo data: these figures say that the software works, and nothing about patients."
    title = f"Gated attention bundle: {settings['method']}, {settings['attention']}, {data.name}"
    footer = "Research software, not a medical device: not for diagnosis."
    _report.write_report(output_dir / "report.html", title=title, sections=sections, notice=notice, footer=footer)


def _training_section(
    folder: Path, history: list[dict[str, float]], metrics: Mapping[str, Any], settings: Settings
) -> str:
    path = folder / "history.png"
    training_figures.save_history(path, history=history, best_epoch=metrics["chosen_epoch"])
    blocks = [_report.figure(path, "Losses and validation figures by epoch")]
    if settings["method"] == "fusion":
        path = folder / "lambda.png"
        training_figures.save_lambda(path, history=history)
        blocks.append(_report.figure(path, "Lambda, the weight of the global branch's loss"))
    return _report.section("Training", *blocks)


def _branches_section(metrics: Mapping[str, Any]) -> str:
    """Fusion and global branch side by side, over all test images and by class."""
    both, alone = metrics["test"], metrics["test_global"]
    labels = _classifier_report.LABELS
    rows = [[label, both[name], alone[name]] for name, label in labels.items() if name in both]
    blocks = [_report.table(["figure", "fusion", "global branch"], rows, "Test; the fusion is the prediction")]
    pairs = zip(metrics["test_per_class"], metrics["test_global_per_class"], strict=True)
    names = [name for name in metrics["test_per_class"][0] if name not in ("class", "n")]
    header = ["class", *[f"{name}, {branch}" for name in names for branch in ("fusion", "global")]]
    by_class = [[one["class"], *[row[name] for name in names for row in (one, other)]] for one, other in pairs]
    blocks.append(_report.table(header, by_class, "By class"))
    return _report.section("Fusion and global branch", *blocks)


def _attention_section(
    folder: Path,
    data: ImageData,
    outcome: Outcome,
    looked: Mapping[str, torch.Tensor],
    instance_pictures: InstancePictures,
    picture: Callable[[int], np.ndarray],
) -> str:
    """Where the network looked in some test images of every class, in turn."""
    targets = outcome.targets
    order = [np.flatnonzero(targets == k) for k in range(len(data.classes))]
    turns = [int(of_class[turn]) for turn in range(NUM_LOOKED_AT) for of_class in order if turn < len(of_class)]
    items, pictures = [], []
    for index in turns[:NUM_LOOKED_AT]:
        image = torch.from_numpy(picture(index)).permute(2, 0, 1)
        shown = instance_pictures.draw(image, {name: value[index] for name, value in looked.items()}, 512)
        pictures.append(shown)
        said = data.classes[int(outcome.probabilities[index].argmax())]
        caption = f"{data.splits['test'].files[index]}: is {data.classes[targets[index]]}, said {said}"
        items.append((_report.thumbnail(np.asarray(shown), 900), caption))
    save_picture(folder / "attention.png", _stacked(pictures[: len(data.classes)]))
    text = "Heat: attention of the global branch. Line: its thresholded mask. Boxes: instances, most attention first."
    return _report.section("Where the network looks", text, _report.gallery(items))


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def _coverage_section(folder: Path, coverage: CoverageResult, metrics: Mapping[str, Any]) -> str:
    path = folder / "coverage.png"
    save_coverage(path, result=coverage)
    rows = coverage.rows()
    text = (
        "A reference box counts as covered if at least half of its area is in the attention mask. Beside it: the share "
        "of the image that the mask takes, and the share of boxes covered when the same mask is moved to random places."
    )
    table = _report.table(list(rows[0]), [list(row.values()) for row in rows], "Reference boxes, test")
    remarks = metrics["coverage"]["remarks"]
    return _report.section("Coverage", text, table, *remarks, _report.figure(path, "Coverage of the reference boxes"))
