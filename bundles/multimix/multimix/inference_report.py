"""The page that inference leaves: classes, lungs, the least certain images with their outlines, bad files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from label_efficient.data.images import read_image
from label_efficient.evaluation.decisions import Decision
from label_efficient.report.inference_sections import (
    caption_of,
    classes_section,
    least_certain_section,
    write_inference_page,
)
from label_efficient.report.page import Section, section, table
from label_efficient.run_folder import RunFolder

from .mask_output import outline

MASK_COLUMNS = ("lung_area_px", "lung_area_mm2", "left_fraction", "right_fraction", "split", "mask")
_PREVIEW = 384  # pixels a side, of which a contact sheet shows about half


def preview_of(mask: np.ndarray) -> np.ndarray:
    """A mask at most 384 pixels a side, by leaving out rows and columns."""
    step = -(-max(mask.shape) // _PREVIEW)
    return mask[::step, ::step].copy()


def write_inference_report(
    run_folder: RunFolder,
    *,
    rows: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    decision: Decision,
    least_certain: Sequence[tuple[Mapping[str, Any], str, np.ndarray | None]],
    empty: Sequence[str],
    **page: Any,
) -> None:
    """Write `report.html` and `figures/least_certain.png`.

    `rows` are of `predictions.csv`; `least_certain` are the row, the file, and the mask as of `preview_of` (or None) of
    each image, the least certain first; `empty` are the files whose mask is empty; `page` as of `write_inference_page`.
    """
    sections = [classes_section(rows, classes, decision)] if classes else []
    good = [row for row in rows if not row["error"]]
    if good and "split" in good[0]:
        sections.append(_lungs_section(good, empty))
    if least_certain:
        images = [_picture(file, preview) for _, file, preview in least_certain]
        sections.append(least_certain_section(run_folder, images, [_caption(row) for row, _, _ in least_certain]))
    write_inference_page(run_folder, bundle="MultiMix", sections=sections, **page)


def _lungs_section(rows: Sequence[Mapping[str, Any]], empty: Sequence[str]) -> Section:
    areas = sorted(float(row["lung_area_px"]) for row in rows)
    told_apart = Counter(row["split"] for row in rows)
    found = f"Median area of the lungs: {np.median(areas):.0f} pixels of the original images."
    counts = table(["how the two lungs were told apart", "images"], list(told_apart.items()))
    missing = [table(["no lung was found in"], [[file] for file in empty])] if empty else []
    return section("Lungs", found, counts, *missing)


def _caption(row: Mapping[str, Any]) -> str:
    return caption_of(row) + ("\nno lung was found" if row.get("split") == "none" else "")


def _picture(file: str, preview: np.ndarray | None) -> np.ndarray:
    picture = read_image(file)
    if preview is None:
        return picture
    size = (preview.shape[1], preview.shape[0])
    return outline(np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)), preview)
