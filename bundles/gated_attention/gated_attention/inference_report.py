"""The page that inference leaves: classes, the least certain images, where the network looked, bad files."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from label_efficient.data.images import read_image
from label_efficient.evaluation.decisions import Decision
from label_efficient.report.inference_sections import (
    caption_of,
    classes_section,
    least_certain_section,
    write_inference_page,
)
from label_efficient.report.page import figure, section
from label_efficient.run_folder import RunFolder

from .instance_figures import save_picture, small_picture

_SHEET_PIXELS = 420  # twice what a contact sheet shows of an image
_HOW_TO_READ = (
    "Least certain first. Bright is where the global branch's attention is, the white line its thresholded mask, the "
    "boxes are the instances that were cut from the image at full resolution. Beside it the instances as the network "
    "sees them, each with the share of the attention that is in the part of the mask it stands for (in the instance "
    "itself, where the mask has too few parts). It is where the network looked, not why it decided."
)


def write_inference_report(
    run_folder: RunFolder,
    *,
    rows: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    decision: Decision,
    least_certain: Sequence[tuple[Mapping[str, Any], str]],
    looks: Sequence[tuple[Mapping[str, Any], Image.Image]],
    **page: Any,
) -> None:
    """Write `report.html`, `figures/least_certain.png` and `figures/attention_<n>.png`.

    `rows` are of `predictions.csv`; `least_certain` are row and file of the contact sheet's images, `looks` rows and
    pictures of what the network looked at, the least certain first; `page` as of `write_inference_page`.
    """
    sections = [classes_section(rows, classes, decision)]
    if least_certain:
        images = [small_picture(read_image(file), _SHEET_PIXELS) for _, file in least_certain]
        sections.append(least_certain_section(run_folder, images, [caption_of(row) for row, _ in least_certain]))
    if looks:
        figures = []
        for number, (row, picture) in enumerate(looks, start=1):
            path = run_folder.file(f"figures/attention_{number}.png")
            save_picture(path, picture)
            figures.append(figure(path, caption_of(row, ": ")))
        sections.append(section("Where the network looked", _HOW_TO_READ, *figures))
    write_inference_page(run_folder, bundle="Gated attention", sections=sections, **page)
