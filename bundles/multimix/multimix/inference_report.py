"""The page that inference leaves: classes, lungs, the least certain images with their outlines, bad files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from label_efficient.data.images import read_image
from label_efficient.files import versions
from label_efficient.report import page as _report
from label_efficient.report import pictures as _pictures
from label_efficient.settings import Settings

from .mask_output import outline

MASK_COLUMNS = ("lung_area_px", "lung_area_mm2", "left_fraction", "right_fraction", "split", "mask")
_PREVIEW = 384  # pixels a side, of which a contact sheet shows about half


def preview_of(mask: np.ndarray) -> np.ndarray:
    """A mask at most 384 pixels a side, by leaving out rows and columns."""
    step = -(-max(mask.shape) // _PREVIEW)
    return mask[::step, ::step].copy()


def write_inference_report(
    output_dir: Path,
    *,
    rows: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    least_certain: Sequence[tuple[Mapping[str, Any], str, np.ndarray | None]],
    empty: Sequence[str],
    bad: Sequence[tuple[str, str]],
    settings: Settings,
) -> None:
    """Write `report.html` and `figures/least_certain.png`.

    Args:
        output_dir: Where to write.
        rows: Of `predictions.csv`.
        classes: Names of the classes; none of a method without.
        least_certain: The least certain image first: its row, its file, and its mask as `preview_of` gives it, or None.
        empty: Files whose mask is empty.
        bad: Files without a prediction, and why.
        settings: Of the run.
    """
    good = [row for row in rows if not row["error"]]
    sections: list[str] = []
    if classes:
        said = Counter(row["pred"] for row in good)
        counts = [[name, said[name]] for name in classes]
        sections.append(_report.section("Predicted classes", _report.table(["class", "images"], counts)))
    if good and "split" in good[0]:
        areas = sorted(float(row["lung_area_px"]) for row in good)
        told_apart = Counter(row["split"] for row in good)
        table = _report.table(["how the two lungs were told apart", "images"], [list(t) for t in told_apart.items()])
        found = f"Median area of the lungs: {np.median(areas):.0f} pixels of the original images."
        missing = [_report.table(["no lung was found in"], [[file] for file in empty])] if empty else []
        sections.append(_report.section("Lungs", found, table, *missing))
    if least_certain:
        path = output_dir / "figures" / "least_certain.png"
        captions = [_caption(row) for row, _, _ in least_certain]
        images = [_picture(file, preview) for _, file, preview in least_certain]
        _pictures.save_contact_sheet(path, images=images, captions=captions)
        sections.append(_report.section("Least certain images", _report.figure(path, "Least certain images first")))
    if bad:
        sections.append(_report.section("Files without a prediction", _report.table(["file", "error"], bad)))
    sections.append(_report.settings_section(settings, settings.changed, versions()))
    _report.write_report(
        output_dir / "report.html",
        title="MultiMix bundle: predictions",
        sections=sections,
        footer="Research software, not a medical device: not for diagnosis.",
    )


def _caption(row: Mapping[str, Any]) -> str:
    said = f"{row['pred']}, " if "pred" in row else ""
    nothing = "\nno lung was found" if row.get("split") == "none" else ""
    return f"{row['file']}\n{said}uncertainty {float(row['uncertainty']):.2f}{nothing}"


def _picture(file: str, preview: np.ndarray | None) -> np.ndarray:
    picture = read_image(file)
    if preview is None:
        return picture
    size = (preview.shape[1], preview.shape[0])
    return outline(np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)), preview)
