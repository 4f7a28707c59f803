"""Figures and `report.html` of a run of the lsanet bundle."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.image_data import ImageData
from label_efficient.report import page as _report
from label_efficient.report.classifier_sections import (
    calibration_section,
    data_section,
    figures_table,
    hardest_section,
    test_section,
)
from label_efficient.settings import Settings

from . import training_figures


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
    sections = [_report.section("Figures", *figures_table(metrics)), data_section(data)]
    if history:
        sections.append(_training_section(folder, history, metrics, node_names, max_beta_ratio))
    sections.append(test_section(folder, data, metrics, targets, probabilities))
    sections.append(calibration_section(folder, data, metrics, targets, raw_probabilities, probabilities))
    sections.append(hardest_section(data, targets, probabilities, uncertainty, picture))
    sections.append(_report.settings_section(settings, settings.changed, metrics["versions"]))
    notice = None
    if data.name == "demo":
        notice = "Synthetic demo data: these figures say that the software works, and nothing about patients."
    title = f"LSANet bundle: {settings['method']}, {settings['backbone']}, {data.name}"
    footer = "Research software, not a medical device: not for diagnosis."
    _report.write_report(output_dir / "report.html", title=title, sections=sections, notice=notice, footer=footer)


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
