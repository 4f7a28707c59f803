"""Figures and `report.html` of a run of the lsanet bundle."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.image_data import ImageData
from label_efficient.report.bundle_page import write_bundle_page
from label_efficient.report.classifier_sections import (
    ClassifiedImages,
    calibration_section,
    class_section,
    data_section,
    figures_section,
    hardest_section,
    training_section,
)
from label_efficient.settings import Settings

from .training_figures import draw_training


def write_run_report(
    output_dir: Path,
    *,
    data: ImageData,
    settings: Settings,
    metrics: Mapping[str, Any],
    probabilities: np.ndarray,
    raw_probabilities: np.ndarray,
    uncertainty: np.ndarray,
    history: Sequence[Mapping[str, float]],
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
        picture: Gives a test image as stored, by its position.
    """
    folder = output_dir / "figures"
    shown = ClassifiedImages.of_test(
        data,
        probabilities=probabilities,
        raw_probabilities=raw_probabilities,
        uncertainty=uncertainty,
        picture=picture,
    )
    training = [training_section(draw_training(folder, history=history, metrics=metrics))] if history else []
    write_bundle_page(
        output_dir,
        title=f"LSANet bundle: {settings['method']}, {settings['backbone']}, {data.name}",
        sections=[
            figures_section(metrics),
            data_section(data),
            *training,
            class_section(folder, shown, metrics["test_per_class"], metrics["test_confusion"]),
            calibration_section(folder, shown, metrics["temperature"]),
            hardest_section(shown),
        ],
        settings=settings,
        versions=metrics["versions"],
        demo=data.name == "demo",
    )
