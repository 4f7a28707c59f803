"""Figures and `report.html` of a run of the lsanet bundle."""

from collections.abc import Callable
from typing import Any

import numpy as np

from label_efficient.evaluation.decisions import Decision
from label_efficient.report.bundle_page import RunPage
from label_efficient.report.classifier_sections import (
    ClassifiedImages,
    calibration_section,
    class_section,
    data_section,
    figures_section,
    hardest_section,
)
from label_efficient.run_folder import RunFolder

from .training_figures import draw_training


def write_run_report(
    run_folder: RunFolder,
    *,
    probabilities: np.ndarray,
    raw_probabilities: np.ndarray,
    uncertainty: np.ndarray,
    decision: Decision,
    picture: Callable[[int], np.ndarray],
    **run: Any,
) -> None:
    """Draw a run's figures and write its report: of the test images as of `ClassifiedImages`, `run` as of `RunPage`."""
    page = RunPage(run_folder, **run)
    folder, metrics = page.folder, page.metrics
    shown = ClassifiedImages.of_test(
        page.data,
        probabilities=probabilities,
        raw_probabilities=raw_probabilities,
        uncertainty=uncertainty,
        decision=decision,
        picture=picture,
    )
    page.write(
        f"LSANet bundle: {page.settings['method']}, {page.settings['backbone']}",
        [
            figures_section(metrics),
            data_section(page.data),
            *page.training(draw_training),
            class_section(folder, shown, metrics["test_per_class"], metrics["test_confusion"]),
            calibration_section(folder, shown, metrics["temperature"]),
            hardest_section(shown),
        ],
    )
