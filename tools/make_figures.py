"""Draw the figures of a model card from the files of a run.

    python tools/make_figures.py lsanet bundles/lsanet/runs/bloodmnist-lsanet

Reads `history.csv`, `metrics.json` and `predictions.csv` of the run, and writes `bundles/<bundle>/docs/figures/*.png`.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", choices=["lsanet"], help="whose figures")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--output_dir", type=Path, help="default: docs/figures of the bundle")
    options = parser.parse_args(arguments)
    if missing := [n for n in ("metrics.json", "predictions.csv") if not (options.run / n).is_file()]:
        raise SystemExit(f"{options.run}: no {', '.join(missing)}; expected the folder of a finished run")
    folder = options.output_dir or ROOT / "bundles" / options.bundle / "docs" / "figures"
    sys.path.insert(0, str(ROOT / "bundles" / options.bundle))
    for path in draw_lsanet(options.run, folder):
        print(path)
    return 0


def draw_lsanet(run: Path, folder: Path) -> list[Path]:
    """Draw beta, confusion matrix, ROC and reliability of a run of the lsanet bundle; returns the files."""
    from lsanet import _figures, training_figures
    from lsanet._records import read_history

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
    _figures.save_roc(drawn[0], targets=targets, probabilities=probabilities, classes=classes)
    _figures.save_reliability(drawn[1], confidence=confidence.ravel(), correct=correct.ravel())
    if targets.ndim == 1:
        drawn.append(folder / "confusion_matrix.png")
        _figures.save_confusion_matrix(drawn[-1], counts=np.asarray(metrics["test_confusion"]), classes=classes)
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


if __name__ == "__main__":
    sys.exit(main())
