"""The page that inference leaves: the predicted classes, the least certain images, the files without a prediction."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from label_efficient.evaluation.decisions import Decision
from label_efficient.files import versions
from label_efficient.report.bundle_page import write_bundle_page
from label_efficient.report.page import Section, figure, section, table
from label_efficient.report.pictures import save_contact_sheet
from label_efficient.run_folder import RunFolder
from label_efficient.settings import Settings


def classes_section(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], decision: Decision) -> Section:
    """How often each class was predicted in rows of `predictions.csv`; after the classes, combinations of labels."""
    said = Counter(row["pred"] for row in rows if not row["error"])
    counts = [[name, said[name]] for name in dict.fromkeys([*classes, *said])]
    return section("Predicted classes", table(["class", "images"], counts), str(decision) if len(classes) == 2 else "")


def least_certain_section(run_folder: RunFolder, images: Sequence[np.ndarray], captions: Sequence[str]) -> Section:
    """Contact sheet `figures/least_certain.png` of images H x W x 3, the least certain first."""
    path = save_contact_sheet(run_folder.file("figures/least_certain.png"), images=images, captions=captions)
    return section("Least certain images", figure(path, "Least certain images first"))


def caption_of(row: Mapping[str, Any], separator: str = "\n") -> str:
    """File, class if there is one, and uncertainty of a row of `predictions.csv`."""
    said = f"{row['pred']}, " if "pred" in row else ""
    return f"{row['file']}{separator}{said}uncertainty {float(row['uncertainty']):.2f}"


def write_inference_page(
    run_folder: RunFolder,
    *,
    bundle: str,
    sections: Sequence[Section],
    bad: Sequence[tuple[str, str]],
    settings: Settings,
) -> None:
    """Write `report.html`: the sections, the files without a prediction and why (`bad`), the settings."""
    failed = [section("Files without a prediction", table(["file", "error"], bad))] if bad else []
    write_bundle_page(run_folder, f"{bundle} bundle: predictions", [*sections, *failed], settings, versions())
