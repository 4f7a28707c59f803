"""What the pages of all bundles have in common: settings and versions, what is said of demo data, the disclaimer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from label_efficient.data.image_copies import Copy
from label_efficient.engine.log import warnings_so_far
from label_efficient.report.history_figures import History
from label_efficient.report.page import (
    Section,
    definition_list,
    figure,
    gallery,
    section,
    table,
    thumbnail,
    write_report,
)
from label_efficient.run_account import Folder
from label_efficient.run_folder import RunFolder
from label_efficient.settings import Settings


@dataclass(frozen=True)
class RunPage:
    """The page of a run, and what it is about: what `metrics.json` and `history.csv` hold (none if only evaluated)."""

    run_folder: RunFolder
    data: Any
    settings: Settings
    metrics: Mapping[str, Any]
    history: History

    @property
    def folder(self) -> Folder:
        """Where to draw."""
        return self.run_folder.folder("figures")

    def training(self, draw: Callable[..., Mapping[Path, str]]) -> list[Section]:
        """Figures of the training and their captions, from `draw_training`; no section if there was none."""
        if not self.history:
            return []
        drawn = draw(self.folder, history=self.history, metrics=self.metrics)
        return [section("Training", *[figure(path, caption) for path, caption in drawn.items()])]

    def write(self, title: str, sections: Sequence[Section]) -> None:
        """Write `report.html`; the title is followed by the name of the data."""
        name, versions = self.data.name, self.metrics["versions"]
        if self.data.copies:
            sections = [*sections, _copies_section(self.data.copies)]
        write_bundle_page(self.run_folder, f"{title}, {name}", sections, self.settings, versions, demo=name == "demo")


def _copies_section(copies: Sequence[Copy]) -> Section:
    """The pairs of images that are one, and the first of them as pictures side by side."""
    shown = [(_side_by_side(copy.pictures), str(copy)) for copy in copies if copy.pictures]
    return section("Copies", f"{len(copies)} pairs, all in copies.csv.", gallery(shown))


def _side_by_side(pictures: Sequence[np.ndarray], height: int = 120) -> bytes:
    panels = []
    for pixels in pictures:
        picture = Image.fromarray(pixels).convert("RGB")
        panels.append(np.asarray(picture.resize((max(picture.width * height // picture.height, 1), height))))
    return thumbnail(np.concatenate(panels, axis=1), 8 * height)


def write_bundle_page(
    run_folder: RunFolder,
    title: str,
    sections: Sequence[Section],
    settings: Settings,
    versions: Mapping[str, str],
    demo: bool = False,
) -> None:
    """Write `report.html`: the sections, then the settings, with those marked that were changed, and the versions."""
    rows = [
        [name, "null" if value is None else str(value), "changed" if name in settings.changed else ""]
        for name, value in settings.items()
    ]
    used = section("Settings and versions", table(["setting", "value", ""], rows), definition_list(versions))
    warned = [section("Warnings of this run", *lines)] if (lines := warnings_so_far()) else []
    notice = "Synthetic demo data: these figures say that the software works, and nothing about patients."
    write_report(
        run_folder.file("report.html"),
        title=title,
        sections=[*warned, *sections, used],
        notice=notice if demo else None,
        footer="Research software, not a medical device: not for diagnosis.",
    )
