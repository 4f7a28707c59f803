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
from label_efficient.report.page import Section, figure, section, table
from label_efficient.report.pictures import save_contact_sheet
from label_efficient.run_folder import RunFolder

from .mask_output import outline
from .plausibility import SHAPE_COLUMNS

MASK_COLUMNS = (
    "lung_area_px", "lung_area_mm2", "left_fraction", "right_fraction", "split", *SHAPE_COLUMNS, "implausible", "mask",
)  # fmt: skip
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
    implausible: Sequence[tuple[Mapping[str, Any], str, np.ndarray]],
    **page: Any,
) -> None:
    """Write `report.html`, `figures/least_certain.png` and, if there are such masks, `figures/implausible.png`.

    `rows` are of `predictions.csv`; `least_certain` are the row, the file, and the mask as of `preview_of` (or None) of
    each image, the least certain first; `implausible` are the same of the first implausible masks; `page` as of
    `write_inference_page`.
    """
    sections = [classes_section(rows, classes, decision)] if classes else []
    good = [row for row in rows if not row["error"]]
    if good and "split" in good[0]:
        sections.append(_lungs_section(good))
    if implausible:
        images = [_picture(file, preview) for _, file, preview in implausible]
        captions = [f"{row['file']}\n{row['implausible']}" for row, _, _ in implausible]
        path = save_contact_sheet(run_folder.file("figures/implausible.png"), images=images, captions=captions)
        sections.append(section("Implausible masks", figure(path, "Masks unlike 99 % of the reference masks")))
    if least_certain:
        images = [_picture(file, preview) for _, file, preview in least_certain]
        sections.append(least_certain_section(run_folder, images, [_caption(row) for row, _, _ in least_certain]))
    write_inference_page(run_folder, bundle="MultiMix", sections=sections, **page)


def _lungs_section(rows: Sequence[Mapping[str, Any]]) -> Section:
    areas = sorted(float(row["lung_area_px"]) for row in rows)
    told_apart = Counter(row["split"] for row in rows)
    found = f"Median area of the lungs: {np.median(areas):.0f} pixels of the original images."
    counts = table(["how the two lungs were told apart", "images"], list(told_apart.items()))
    odd = [[row["file"], row["implausible"]] for row in rows if row["implausible"]]
    implausible = [table(["implausible mask of", "why"], odd)] if odd else []
    return section("Lungs", found, counts, *implausible)


def _caption(row: Mapping[str, Any]) -> str:
    return caption_of(row) + ("\nno lung was found" if row.get("split") == "none" else "")


def _picture(file: str, preview: np.ndarray | None) -> np.ndarray:
    picture = read_image(file)
    if preview is None:
        return picture
    size = (preview.shape[1], preview.shape[0])
    return outline(np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)), preview)
