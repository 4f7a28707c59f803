"""Figures and `report.html` of a run of the multimix bundle."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from label_efficient.evaluation.decisions import Decision
from label_efficient.evaluation.predictions import normalised_entropy
from label_efficient.report.bundle_page import RunPage
from label_efficient.report.classifier_sections import (
    LABELS,
    ClassifiedImages,
    calibration_section,
    class_section,
    figures_table,
    hardest_section,
    operating_point_table,
)
from label_efficient.report.page import Section, figure, section, table
from label_efficient.run_account import Folder
from label_efficient.run_folder import RunFolder

from .data import ChestData, Part
from .mask_figures import save_boundaries, save_dice_boxes, save_saliency
from .outcomes import ChestOutcome
from .shipped import ShippedMultiMix
from .training_figures import draw_training
from .transforms import to_input

NUM_SHOWN = 8
_NAMES = {
    "val": "validation",
    "validation": "validation",
    "test": "test, in domain",
    "cross_domain": "cross-domain",
}
_MASK_LABELS = {
    "dice": "Dice",
    "dice_sd": "Dice, standard deviation",
    "dice_median": "Dice, median",
    "jaccard": "Jaccard",
    "ssim": "SSIM",
    "average_hausdorff": "average Hausdorff distance, pixels",
    "hd95": "HD95, pixels",
    "average_hausdorff_mm": "average Hausdorff distance, mm",
    "hd95_mm": "HD95, mm",
    "precision": "precision",
    "recall": "recall",
    "num_empty_predictions": "images in which no lung was found",
    "num_undefined_distances": "images without a distance",
    "n": "images",
}


def write_run_report(
    run_folder: RunFolder,
    *,
    parts: Mapping[str, Part],
    outcomes: Mapping[str, ChestOutcome],
    probabilities: Mapping[str, np.ndarray],
    raw_probabilities: Mapping[str, np.ndarray],
    decision: Decision,
    network: ShippedMultiMix,
    device: torch.device,
    **run: Any,
) -> None:
    """Draw the figures of a run and write its report, one page with everything in it.

    The probabilities are of the classes, N x K of each section, after calibration if there was one, and before (raw);
    none without classes. `run` is as of `RunPage`.
    """
    page = RunPage(run_folder, **run)
    folder, metrics = page.folder, page.metrics
    sections = [_figures_section(metrics), _data_section(page.data), *page.training(draw_training)]
    if any(outcome.mask_rows for outcome in outcomes.values()):
        sections.append(_mask_section(folder, parts, outcomes))
    name = "test" if "test" in parts else "val"
    if name in probabilities and len(parts[name].labelled):
        shown = _labelled_images(name, parts[name], page.data.classes, probabilities[name], raw_probabilities[name],
                                  decision)  # fmt: skip
        figures = metrics["validation" if name == "val" else name]["classification"]
        sections += [
            class_section(folder, shown, figures["per_class"], figures["confusion"]),
            calibration_section(folder, shown, metrics["temperature"]),
            hardest_section(shown),
            _saliency_section(folder, shown, network, device),
        ]
    page.write(f"MultiMix bundle: {page.settings['method']}", sections)


def _figures_section(metrics: Mapping[str, Any]) -> Section:
    """Figures of each task side by side: of the sections, and of their sources where there are several."""
    blocks = []
    for task, labels in (("classification", LABELS), ("segmentation", _MASK_LABELS)):
        columns: dict[str, Mapping[str, Any]] = {}
        for name in ("validation", "test", "cross_domain"):
            own = metrics.get(name, {})
            if task in own:
                columns[_NAMES[name]] = own[task]
            for source, of_source in own.get("by_source", {}).items():
                if task in of_source and of_source[task]["n"] < own[task]["n"]:
                    columns[f"{_NAMES[name]}: {source}"] = of_source[task]
        if columns:
            caption = f"{task.capitalize()}, epoch {metrics['chosen_epoch']}, chosen on validation"
            blocks.append(figures_table(columns, labels, caption))
    return section("Figures", *blocks, *operating_point_table(metrics))


def _data_section(data: ChestData) -> Section:
    counts = data.counts()
    header = [_NAMES.get(name, "training" if name == "train" else name) for name in counts[0]]
    rows = table(header, [list(row.values()) for row in counts], data.source)
    return section("Data", rows, *data.remarks(), *data.notes)


def _labelled_images(
    name: str,
    part: Part,
    classes: Sequence[str],
    probabilities: np.ndarray,
    raw_probabilities: np.ndarray,
    decision: Decision,
) -> ClassifiedImages:
    """The images of a section whose class is known."""
    labelled = part.labelled
    found = probabilities[labelled]
    return ClassifiedImages(
        where=_NAMES[name],
        classes=classes,
        files=[part.entries[position].file for position in labelled],
        targets=part.labels[labelled],
        probabilities=found,
        raw_probabilities=raw_probabilities[labelled],
        uncertainty=normalised_entropy(torch.from_numpy(found)).numpy(),
        decision=decision,
        picture=lambda index: part.images[labelled[index]],
    )


def _mask_section(folder: Folder, parts: Mapping[str, Part], outcomes: Mapping[str, ChestOutcome]) -> Section:
    scores: dict[str, list[float]] = {}
    for name, part in parts.items():
        for position, row in outcomes[name].mask_rows.items():
            source = part.entries[position].source
            group = f"{source} ({_NAMES[name]})" if source else _NAMES[name]
            scores.setdefault(group, []).append(row["dice"])
    blocks = [figure(save_dice_boxes(folder / "dice.png", scores=scores), "Dice of every image")]
    for name in ("test", "cross_domain"):
        if name in outcomes and outcomes[name].mask_rows:
            path = _boundaries(folder / f"boundaries_{name}.png", parts[name], outcomes[name])
            text = f"{_NAMES[name].capitalize()}: the images with the lowest Dice, then evenly spread up to the highest"
            blocks.append(figure(path, text))
    return section("Masks", *blocks)


def _boundaries(path: Path, part: Part, outcome: ChestOutcome) -> Path:
    """Half of the images shown are the worst, the others spread over the rest."""
    assert outcome.masks is not None
    order = sorted(outcome.mask_rows, key=lambda position: outcome.mask_rows[position]["dice"])
    worst, rest = order[: NUM_SHOWN // 2], order[NUM_SHOWN // 2 :]
    spread = [rest[i] for i in sorted({int(i) for i in np.linspace(0, len(rest) - 1, NUM_SHOWN // 2)})] if rest else []
    chosen = [*worst, *spread]
    return save_boundaries(
        path,
        images=[part.images[i] for i in chosen],
        predicted=[(outcome.masks[i] > 0.5).numpy() for i in chosen],
        references=[part.masks[part.mask_rows[i]] == 1 for i in chosen],
        captions=[f"{part.entries[i].file}\nDice {outcome.mask_rows[i]['dice']:.3f}" for i in chosen],
    )


def _saliency_section(
    folder: Folder, shown: ClassifiedImages, network: ShippedMultiMix, device: torch.device
) -> Section:
    chosen = sorted({int(i) for i in np.linspace(0, len(shown.files) - 1, NUM_SHOWN)})
    images = np.stack([shown.picture(i) for i in chosen])
    with torch.no_grad():
        maps = network.encode(to_input(torch.from_numpy(images)[:, None], device))[2]
    found = shown.probabilities
    path = save_saliency(
        folder / "saliency.png",
        images=list(images),
        saliency_maps=list(maps[:, 0].float().cpu().numpy()),
        captions=[f"{shown.files[i]}\n{shown.classes[int(found[i].argmax())]} {found[i].max():.2f}" for i in chosen],
    )
    text = "Absolute gradient of the winning class score: what the bridge hands to the decoder."
    return section("Saliency maps", text, figure(path, "Images and their saliency maps"))
