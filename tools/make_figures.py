"""Draw the figures of a model card from the files of a run.

    python tools/make_figures.py lsanet bundles/lsanet/runs/bloodmnist-lsanet

Reads `history.csv`, `metrics.json` and `predictions.csv` of the run, and writes `bundles/<bundle>/docs/figures/*.png`.
Pictures of test images (where a network looked, outlines of masks) are copied as the run drew them: look at the licence
of the images before publishing them.
"""

import argparse
import importlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bundle_paths import use_bundle

from label_efficient.engine.history import read_history
from label_efficient.evaluation.predictions import decision_confidence
from label_efficient.files import read_csv
from label_efficient.report.figures import save_confusion_matrix, save_reliability, save_roc

COPIED = {
    "lsanet": (),
    "multimix": ("boundaries_test.png", "saliency.png"),
    "gated_attention": ("attention.png", "coverage.png"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", choices=sorted(COPIED), help="whose figures")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--output_dir", type=Path, help="default: docs/figures of the bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace figures that are there")
    options = parser.parse_args(arguments)
    if missing := [n for n in ("metrics.json", "predictions.csv") if not (options.run / n).is_file()]:
        raise SystemExit(f"{options.run}: no {', '.join(missing)}; expected the folder of a finished run")
    bundle = use_bundle(options.bundle)
    folder = options.output_dir or bundle / "docs" / "figures"
    with tempfile.TemporaryDirectory() as drawn:
        paths = draw(options.bundle, options.run, Path(drawn))
        if (found := [path.name for path in paths if (folder / path.name).exists()]) and not options.overwrite:
            raise SystemExit(f"{folder} holds {', '.join(found)}: --overwrite replaces them")
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            print(shutil.copyfile(path, folder / path.name))
    return 0


def draw(bundle: str, run: Path, folder: Path) -> list[Path]:
    """Draw what a run has figures of, with the bundle's own functions; returns the files."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    rows = read_csv(run / "predictions.csv")
    test = [row for row in rows if row.get("section", "test") == "test" and row.get("label") and row.get("pred")]
    drawn = draw_classes(test, metrics, folder) if test else []
    if (run / "history.csv").is_file():
        training = importlib.import_module(f"{bundle}.training_figures")
        drawn += training.draw_training(folder, history=read_history(run / "history.csv"), metrics=metrics)
    if scored := [row for row in rows if row.get("dice")]:
        drawn.append(draw_dice(scored, folder))
    found = [name for name in COPIED[bundle] if (run / "figures" / name).is_file()]
    return drawn + [Path(shutil.copyfile(run / "figures" / name, folder / name)) for name in found]


def draw_classes(rows: Sequence[Mapping[str, str]], metrics: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ROC, reliability and, where an image has one class, confusion matrix of rows; returns the files."""
    classes = metrics["data"]["classes"]
    multi_label = "multi-label" in metrics.get("task", "")
    probabilities = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    if multi_label:
        named = [row["label"].split("; ") for row in rows]
        targets = np.array([[int(name in labels) for name in classes] for labels in named])
    else:
        targets = np.array([classes.index(row["label"]) for row in rows])
    confidence, correct = decision_confidence(probabilities, targets, multi_label)
    drawn = [folder / "roc.png", folder / "reliability.png"]
    save_roc(drawn[0], targets=targets, probabilities=probabilities, classes=classes)
    save_reliability(drawn[1], confidence=confidence, correct=correct)
    if not multi_label:
        counts = metrics.get("test_confusion") or metrics["test"]["classification"]["confusion"]
        drawn.append(folder / "confusion_matrix.png")
        save_confusion_matrix(drawn[-1], counts=np.asarray(counts), classes=classes)
    return drawn


def draw_dice(rows: Sequence[Mapping[str, str]], folder: Path) -> Path:
    """Draw the Dice of the images in rows by data set; returns the file."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        where = "in domain" if row["section"] == "test" else "cross-domain"
        scores.setdefault(f"{row['source']} ({where})", []).append(float(row["dice"]))
    path = folder / "dice.png"
    importlib.import_module("multimix.mask_figures").save_dice_boxes(path, scores=scores)
    return path


if __name__ == "__main__":
    sys.exit(main())
