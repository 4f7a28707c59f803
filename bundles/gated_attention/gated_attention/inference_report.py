"""The page that inference leaves: classes, the least certain images, where the network looked, bad files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from label_efficient.data.images import read_image
from label_efficient.files import versions
from label_efficient.report import page as _report
from label_efficient.report import pictures as _pictures
from label_efficient.settings import Settings

from .instance_figures import save_picture, small_picture

_SHEET_PIXELS = 420  # twice what a contact sheet shows of an image
_HOW_TO_READ = (
    "Least certain first. Bright is where the global branch's attention is, the white line its thresholded mask, the "
    "boxes are the instances that were cut from the image at full resolution. Beside it the instances as the network "
    "sees them, each with the share of the attention that is in the part of the mask it stands for (in the instance "
    "itself, where the mask has too few parts). It is where the network looked, not why it decided."
)


def write_inference_report(
    output_dir: Path,
    *,
    rows: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    least_certain: Sequence[tuple[Mapping[str, Any], str]],
    looks: Sequence[tuple[Mapping[str, Any], Image.Image]],
    bad: Sequence[tuple[str, str]],
    settings: Settings,
) -> None:
    """Write `report.html`, `figures/least_certain.png` and `figures/attention_<n>.png`.

    Args:
        output_dir: Where to write.
        rows: Of `predictions.csv`.
        classes: Names of the classes.
        least_certain: Images of the contact sheet: row and file, the least certain first.
        looks: Rows and pictures of what the network looked at, the least certain first.
        bad: Files without a prediction, and why.
        settings: Of the run.
    """
    said = Counter(row["pred"] for row in rows if not row["error"])
    counts = [[name, said[name]] for name in classes]
    sections: list[str] = [_report.section("Predicted classes", _report.table(["class", "images"], counts))]
    if least_certain:
        path = output_dir / "figures" / "least_certain.png"
        images = [small_picture(read_image(file), _SHEET_PIXELS) for _, file in least_certain]
        captions = [_caption(row, "\n") for row, _ in least_certain]
        _pictures.save_contact_sheet(path, images=images, captions=captions)
        sections.append(_report.section("Least certain images", _report.figure(path, "Least certain images first")))
    if looks:
        figures: list[str] = []
        for number, (row, picture) in enumerate(looks, start=1):
            path = output_dir / "figures" / f"attention_{number}.png"
            save_picture(path, picture)
            figures.append(_report.figure(path, _caption(row, ": ")))
        sections.append(_report.section("Where the network looked", _HOW_TO_READ, *figures))
    if bad:
        sections.append(_report.section("Files without a prediction", _report.table(["file", "error"], bad)))
    sections.append(_report.settings_section(settings, settings.changed, versions()))
    _report.write_report(
        output_dir / "report.html",
        title="Gated attention bundle: predictions",
        sections=sections,
        footer="Research software, not a medical device: not for diagnosis.",
    )


def _caption(row: Mapping[str, Any], separator: str) -> str:
    return f"{row['file']}{separator}{row['pred']}, uncertainty {float(row['uncertainty']):.2f}"
