"""Draw the figures of a model card from the files of a run.

    python tools/make_figures.py lsanet bundles/lsanet/runs/bloodmnist-lsanet

Reads `history.csv`, `metrics.json` and `predictions.csv` of the run, and writes `bundles/<bundle>/docs/figures/*.png`.
"""

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", choices=sorted(DRAW), help="whose figures")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--output_dir", type=Path, help="default: docs/figures of the bundle")
    options = parser.parse_args(arguments)
    if missing := [n for n in ("metrics.json", "predictions.csv") if not (options.run / n).is_file()]:
        raise SystemExit(f"{options.run}: no {', '.join(missing)}; expected the folder of a finished run")
    folder = options.output_dir or ROOT / "bundles" / options.bundle / "docs" / "figures"
    sys.path.insert(0, str(ROOT / "bundles" / options.bundle))
    for path in DRAW[options.bundle](options.run, folder):
        print(path)
    return 0


def draw_lsanet(run: Path, folder: Path) -> list[Path]:
    """Draw beta, confusion matrix, ROC and reliability of a run of the lsanet bundle; returns the files."""
    from label_efficient.engine.history import read_history
    from label_efficient.report import figures as _figures
    from lsanet import training_figures

    metrics, drawn = draw_classification(run, folder, _figures)
    if (run / "history.csv").is_file():
        history = read_history(run / "history.csv")
        nodes = [name for name in ("C1", "C2", "C3", "C4") if f"train_beta_{name}" in history[-1]]
        if nodes:
            drawn.append(folder / "beta.png")
            settings = metrics["settings"]
            ratio = None if settings["lsa"] == "gated" else float(np.exp(1 / settings["lsa_temperature"]))
            training_figures.save_beta(drawn[-1], history=history, nodes=nodes, max_ratio=ratio)
        drawn.append(folder / "history.png")
        training_figures.save_history(drawn[-1], history=history, best_epoch=metrics["chosen_epoch"])
    return drawn


def draw_gated_attention(run: Path, folder: Path) -> list[Path]:
    """Draw history, lambda, confusion matrix, ROC and reliability of a gated attention run; returns the files.

    Where the network looked in test images, and the coverage of boxes, are copied as the run drew them: look at the
    licence of the images before publishing them.
    """
    from gated_attention import training_figures
    from label_efficient.engine.history import read_history
    from label_efficient.report import figures as _figures

    metrics, drawn = draw_classification(run, folder, _figures)
    if (run / "history.csv").is_file():
        history = read_history(run / "history.csv")
        drawn.append(folder / "history.png")
        training_figures.save_history(drawn[-1], history=history, best_epoch=metrics["chosen_epoch"])
        if "train_lambda" in history[-1]:
            drawn.append(folder / "lambda.png")
            training_figures.save_lambda(drawn[-1], history=history)
    return drawn + copied(run, folder, ("attention.png", "coverage.png"))


def draw_classification(run: Path, folder: Path, figures: Any) -> tuple[dict[str, Any], list[Path]]:
    """Draw confusion matrix, ROC and reliability of a classifier's run; returns its figures, and the files.

    Args:
        run: Its folder.
        folder: Where to draw.
        figures: The module `_figures` of its bundle.
    """
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    classes = metrics["data"]["classes"]
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    probabilities = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    if "multi-label" in metrics["task"]:
        named = [row["label"].split("; ") for row in rows]
        targets = np.array([[int(name in labels) for name in classes] for labels in named])
        confidence, correct = np.maximum(probabilities, 1 - probabilities), (probabilities > 0.5) == targets
    else:
        targets = np.array([classes.index(row["label"]) for row in rows])
        confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    drawn = [folder / "roc.png", folder / "reliability.png"]
    figures.save_roc(drawn[0], targets=targets, probabilities=probabilities, classes=classes)
    figures.save_reliability(drawn[1], confidence=confidence.ravel(), correct=correct.ravel())
    if targets.ndim == 1:
        drawn.append(folder / "confusion_matrix.png")
        figures.save_confusion_matrix(drawn[-1], counts=np.asarray(metrics["test_confusion"]), classes=classes)
    return metrics, drawn


def copied(run: Path, folder: Path, names: Sequence[str]) -> list[Path]:
    """Copy figures of a run, those that it has; returns the files."""
    found = [name for name in names if (run / "figures" / name).is_file()]
    for name in found:
        shutil.copyfile(run / "figures" / name, folder / name)
    return [folder / name for name in found]


def draw_multimix(run: Path, folder: Path) -> list[Path]:
    """Draw Dice by data set, confusion matrix, ROC, reliability and history of a multimix run; returns the files.

    Boundaries of the test images and saliency maps show patients, and are copied as the run drew them: look at the
    licence of the images before publishing them.
    """
    from label_efficient.engine.history import read_history
    from label_efficient.report import figures as _figures
    from label_efficient.report import history_figures as _history_figures
    from multimix import mask_figures
    from multimix.run_report import LOSSES, METRICS

    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    classes = metrics["data"]["classes"]
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    drawn = []
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.get("dice"):
            where = "in domain" if row["section"] == "test" else "cross-domain"
            scores.setdefault(f"{row['source']} ({where})", []).append(float(row["dice"]))
    if scores:
        drawn.append(folder / "dice.png")
        mask_figures.save_dice_boxes(drawn[-1], scores=scores)
    labelled = [row for row in rows if row["section"] == "test" and row.get("label") and row.get("pred")]
    if labelled:
        targets = np.array([classes.index(row["label"]) for row in labelled])
        probabilities = np.array([[float(row[f"p_{name}"]) for name in classes] for row in labelled])
        confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
        counts = np.asarray(metrics["test"]["classification"]["confusion"])
        drawn += [folder / name for name in ("roc.png", "reliability.png", "confusion_matrix.png")]
        _figures.save_roc(drawn[-3], targets=targets, probabilities=probabilities, classes=classes)
        _figures.save_reliability(drawn[-2], confidence=confidence, correct=correct)
        _figures.save_confusion_matrix(drawn[-1], counts=counts, classes=classes)
    if (run / "history.csv").is_file():
        drawn.append(folder / "history.png")
        _history_figures.save_history(
            drawn[-1],
            history=read_history(run / "history.csv"),
            losses=LOSSES,
            metrics=METRICS,
            best_epoch=metrics["chosen_epoch"],
        )
    return drawn + copied(run, folder, ("boundaries_test.png", "saliency.png"))


DRAW = {"lsanet": draw_lsanet, "multimix": draw_multimix, "gated_attention": draw_gated_attention}

if __name__ == "__main__":
    sys.exit(main())
