"""Figures and `report.html` of a run of the multimix bundle."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from label_efficient.evaluation.predictions import decision_confidence
from label_efficient.report import figures as _figures
from label_efficient.report import history_figures as _history_figures
from label_efficient.report import page as _report
from label_efficient.settings import Settings

from . import mask_figures
from .data import ChestData, Part
from .outcomes import ChestOutcome
from .shipped import ShippedMultiMix
from .transforms import to_input

NUM_SHOWN = 8
_NAMES = {
    "val": "validation",
    "validation": "validation",
    "test": "test, in domain",
    "cross_domain": "cross-domain",
}
_CLASS_LABELS = {
    "acc": "accuracy",
    "auc": "AUC",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity at 0.5",
    "specificity": "specificity at 0.5",
    "ece": "expected calibration error",
    "nll": "negative log-likelihood",
    "n": "images",
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
LOSSES = {
    "train_loss": "total",
    "train_class_loss": "cross-entropy",
    "train_pseudo_label_loss": "pseudo-labels",
    "train_mask_loss": "Dice loss",
    "train_kl_loss": "KL",
}
METRICS = {"val_score": "score", "val_acc": "accuracy", "val_auc": "AUC", "val_dice": "Dice"}


def write_run_report(
    output_dir: Path,
    *,
    data: ChestData,
    settings: Settings,
    metrics: Mapping[str, Any],
    parts: Mapping[str, Part],
    outcomes: Mapping[str, ChestOutcome],
    probabilities: Mapping[str, np.ndarray],
    raw_probabilities: Mapping[str, np.ndarray],
    network: ShippedMultiMix,
    device: torch.device,
    history: list[dict[str, float]],
) -> None:
    """Draw the figures of a run and write its report, one page with everything in it.

    Args:
        output_dir: Folder of the run; figures go to its folder `figures`.
        data: The data set.
        settings: Of the run.
        metrics: Content of `metrics.json`.
        parts: The evaluated sections.
        outcomes: What the network says of each.
        probabilities: Of the classes, N x K of each section, after calibration if there was one; none without classes.
        raw_probabilities: Before.
        network: With the weights, for saliency maps.
        device: Where it is.
        history: Rows of `history.csv`; empty if only evaluated.
    """
    folder = output_dir / "figures"
    sections = [_report.section("Figures", *_tables(metrics)), _data_section(data)]
    if history:
        sections.append(_training_section(folder, history, metrics))
    if any(outcome.mask_rows for outcome in outcomes.values()):
        sections.append(_mask_section(folder, parts, outcomes))
    shown = "test" if "test" in parts else "val"
    if shown in probabilities and len(parts[shown].labelled):
        sections += _class_sections(folder, shown, data, parts, metrics, probabilities, raw_probabilities)
        sections.append(_saliency_section(folder, parts[shown], data, network, device, probabilities[shown]))
    sections.append(_report.settings_section(settings, settings.changed, metrics["versions"]))
    notice = None
    if data.name == "demo":
        notice = "Synthetic demo data: these figures say that the software works, and nothing about patients."
    title = f"MultiMix bundle: {settings['method']}, {data.name}"
    footer = "Research software, not a medical device: not for diagnosis."
    _report.write_report(output_dir / "report.html", title=title, sections=sections, notice=notice, footer=footer)


def _tables(metrics: Mapping[str, Any]) -> list[str]:
    blocks: list[str] = []
    for task, labels in (("classification", _CLASS_LABELS), ("segmentation", _MASK_LABELS)):
        columns: dict[str, Mapping[str, Any]] = {}
        for name in ("validation", "test", "cross_domain"):
            section = metrics.get(name, {})
            if task in section:
                columns[_NAMES[name]] = section[task]
            for source, own in section.get("by_source", {}).items():
                if task in own and own[task]["n"] < section[task]["n"]:
                    columns[f"{_NAMES[name]}: {source}"] = own[task]
        rows = [
            [label, *[values.get(key) for values in columns.values()]]
            for key, label in labels.items()
            if any(key in values for values in columns.values())
        ]
        if rows:
            caption = f"{task.capitalize()}, epoch {metrics['chosen_epoch']}, chosen on validation"
            blocks.append(_report.table(["figure", *columns], rows, caption))
    return blocks


def _data_section(data: ChestData) -> str:
    counts = data.counts()
    header = [_NAMES.get(name, "training" if name == "train" else name) for name in counts[0]]
    table = _report.table(header, [list(row.values()) for row in counts], data.source)
    return _report.section("Data", table, *data.remarks(), *data.notes)


def _training_section(folder: Path, history: list[dict[str, float]], metrics: Mapping[str, Any]) -> str:
    path = folder / "history.png"
    known = {key: label for key, label in METRICS.items() if any(np.isfinite(row.get(key, np.nan)) for row in history)}
    _history_figures.save_history(
        path, history=history, losses=LOSSES, metrics=known, best_epoch=metrics["chosen_epoch"]
    )
    blocks = [_report.figure(path, "Losses (without their weights) and validation figures by epoch")]
    if "train_pseudo_label_share" in history[-1]:
        path = folder / "pseudo_labels.png"
        mask_figures.save_pseudo_labels(path, history=history)
        blocks.append(_report.figure(path, "Pseudo-labels of the unlabelled images"))
    return _report.section("Training", *blocks)


def _mask_section(folder: Path, parts: Mapping[str, Part], outcomes: Mapping[str, ChestOutcome]) -> str:
    scores: dict[str, list[float]] = {}
    for name, part in parts.items():
        for position, row in outcomes[name].mask_rows.items():
            source = part.entries[position].source
            group = f"{source} ({_NAMES[name]})" if source else _NAMES[name]
            scores.setdefault(group, []).append(row["dice"])
    path = folder / "dice.png"
    mask_figures.save_dice_boxes(path, scores=scores)
    blocks = [_report.figure(path, "Dice of every image")]
    for name in ("test", "cross_domain"):
        if name in outcomes and outcomes[name].mask_rows:
            path = folder / f"boundaries_{name}.png"
            _save_boundaries(path, parts[name], outcomes[name])
            text = f"{_NAMES[name].capitalize()}: the images with the lowest Dice, then evenly spread up to the highest"
            blocks.append(_report.figure(path, text))
    return _report.section("Masks", *blocks)


def _save_boundaries(path: Path, part: Part, outcome: ChestOutcome) -> None:
    """Half of the images shown are the worst, the others spread over the rest."""
    assert outcome.masks is not None
    order = sorted(outcome.mask_rows, key=lambda position: outcome.mask_rows[position]["dice"])
    worst, rest = order[: NUM_SHOWN // 2], order[NUM_SHOWN // 2 :]
    spread = [rest[i] for i in sorted({int(i) for i in np.linspace(0, len(rest) - 1, NUM_SHOWN // 2)})] if rest else []
    chosen = [*worst, *spread]
    mask_figures.save_boundaries(
        path,
        images=[part.images[i] for i in chosen],
        predicted=[(outcome.masks[i] > 0.5).numpy() for i in chosen],
        references=[part.masks[part.mask_rows[i]] == 1 for i in chosen],
        captions=[f"{part.entries[i].file}\nDice {outcome.mask_rows[i]['dice']:.3f}" for i in chosen],
    )


def _class_sections(
    folder: Path,
    shown: str,
    data: ChestData,
    parts: Mapping[str, Part],
    metrics: Mapping[str, Any],
    probabilities: Mapping[str, np.ndarray],
    raw_probabilities: Mapping[str, np.ndarray],
) -> list[str]:
    part, figures = parts[shown], metrics["validation" if shown == "val" else shown]["classification"]
    labelled = part.labelled
    targets, found = part.labels[labelled], probabilities[shown][labelled]
    rows = figures["per_class"]
    blocks = [_report.table(list(rows[0]), [list(row.values()) for row in rows], f"By class, {_NAMES[shown]}")]
    path = folder / "confusion_matrix.png"
    _figures.save_confusion_matrix(path, counts=np.asarray(figures["confusion"]), classes=data.classes)
    blocks.append(_report.figure(path, f"Confusion matrix, {_NAMES[shown]}"))
    path = folder / "roc.png"
    _figures.save_roc(path, targets=targets, probabilities=found, classes=data.classes)
    blocks.append(_report.figure(path, f"ROC curve, {_NAMES[shown]}"))
    path = folder / "reliability.png"
    confidence, correct = decision_confidence(raw_probabilities[shown][labelled], targets, False)
    calibrated = metrics["temperature"] != 1
    after = decision_confidence(found, targets, False)[0] if calibrated else None
    _figures.save_reliability(path, confidence=confidence, correct=correct, confidence_calibrated=after)
    text = f"Temperature {metrics['temperature']:.3f}" + ("" if calibrated else " (calibrate=true fits one)")
    return [
        _report.section("Classes", *blocks),
        _report.section("Calibration", text, _report.figure(path, f"Reliability, {_NAMES[shown]}")),
        _hardest_section(shown, part, data.classes, probabilities[shown]),
    ]


def _hardest_section(shown: str, part: Part, classes: Sequence[str], probabilities: np.ndarray) -> str:
    labelled = part.labelled
    truth = probabilities[labelled, part.labels[labelled]]
    items = []
    for index in labelled[np.argsort(truth, kind="stable")[: 2 * NUM_SHOWN]].tolist():
        said, true = classes[int(probabilities[index].argmax())], part.labels[index]
        caption = f"{part.entries[index].file}: is {classes[true]} ({probabilities[index, true]:.2f}), said {said}"
        items.append((_report.thumbnail(part.images[index]), caption))
    text = f"The {_NAMES[shown].split(',')[0]} images whose true class has the least probability."
    return _report.section("Hardest cases", text, _report.gallery(items))


def _saliency_section(
    folder: Path,
    part: Part,
    data: ChestData,
    network: ShippedMultiMix,
    device: torch.device,
    probabilities: np.ndarray,
) -> str:
    chosen = sorted({int(i) for i in np.linspace(0, len(part.labelled) - 1, NUM_SHOWN)})
    positions = part.labelled[chosen]
    with torch.no_grad():
        maps = network.encode(to_input(torch.from_numpy(part.images[positions])[:, None], device))[2]
    path = folder / "saliency.png"
    mask_figures.save_saliency(
        path,
        images=list(part.images[positions]),
        saliency_maps=list(maps[:, 0].float().cpu().numpy()),
        captions=[
            f"{part.entries[i].file}\n{data.classes[int(probabilities[i].argmax())]} {probabilities[i].max():.2f}"
            for i in positions.tolist()
        ],
    )
    text = "Absolute gradient of the winning class score: what the bridge hands to the decoder."
    return _report.section("Saliency maps", text, _report.figure(path, "Images and their saliency maps"))
