"""Render the CSVs of results as Markdown tables in the READMEs, mean over seeds with spread; `--check` only compares.

A README marks a table with two comments; what stands between them is replaced:

    <!-- table: results/retina.csv row,acc,auc,last_acc,last_auc -->
    <!-- end of table -->

or, for what tools/benchmark.py writes, `<!-- benchmark: results/benchmark.csv -->` and the same end. The path is
relative to the README's folder. Figures of several seeds of a row become "mean ± standard deviation".
"""

import argparse
import csv
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = re.compile(r"(<!-- benchmark: (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
PATTERN = re.compile(r"(<!-- table: (\S+) (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
NAMES = {
    "row": "method",
    "acc": "ACC",
    "auc": "AUC",
    "last_acc": "ACC, last epoch",
    "last_auc": "AUC, last epoch",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "quadratic_kappa": "quadratic kappa",
    "epoch": "epoch",
    "f1_NORMAL": "F1 normal",
    "f1_PNEUMONIA": "F1 pneumonia",
    "dice": "Dice",
    "ssim": "SSIM",
    "average_hausdorff": "AHD, pixels",
    "global_acc": "ACC, global branch",
    "global_auc": "AUC, global branch",
    "val_acc": "ACC, validation",
    "coverage_covered_share": "boxes covered",
    "coverage_random_share": "by chance",
    "coverage_mask_share": "mask's share",
    "x_dice": "x-Dice",
    "x_ssim": "x-SSIM",
    "x_average_hausdorff": "x-AHD, pixels",
}
DISTANCES = ("hausdorff", "hd95")  # not shares: shown as they are


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 if `--check` finds a table that is out of step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of step")
    parser.add_argument("files", nargs="*", type=Path, help="Markdown files (default: all READMEs)")
    options = parser.parse_args(arguments)
    files = options.files or sorted([ROOT / "README.md", *ROOT.glob("bundles/*/docs/README.md")])
    stale = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        rendered = render(text, path.parent)
        if rendered == text:
            continue
        stale.append(path)
        if not options.check:
            path.write_text(rendered, encoding="utf-8")
            print(f"rendered {path}")
    if options.check and stale:
        print("out of step with their CSVs: " + ", ".join(map(str, stale)), file=sys.stderr)
        return 1
    return 0


def render(text: str, folder: Path) -> str:
    """The Markdown text with every marked table made anew."""

    def replace(match: re.Match[str]) -> str:
        start, source, columns, _, end = match.groups()
        return start + table(folder / source, columns.split(",")) + end

    text = BENCHMARK.sub(lambda m: m[1] + benchmark(folder / m[2]) + m[4], text)
    return PATTERN.sub(replace, text)


def benchmark(path: Path) -> str:
    """Rows of a benchmark that have a bar, as a Markdown table: the median ratio and its range."""
    if not path.is_file():
        raise SystemExit(f"{path}: no such file")
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["bar"]]
    rows.sort(key=lambda row: (row["device"], row["benchmark"], int(row["image_size"] or 0)))
    lines = ["| benchmark | pixels | ours against | ratio (range) | bar | holds |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = f"{row['ratio']} ({row['ratio_min']} to {row['ratio_max']})"
        if row["benchmark"] == "startup":
            ratio = f"{row['median_ours']} s, {row['median_against']} s"
        against = f"{row['ours']} / {row['against']}"
        cells = (row["benchmark"], row["image_size"] or "–", against, ratio, row["bar"], row["holds"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def table(path: Path, columns: list[str]) -> str:
    """A CSV's columns as a Markdown table, one line per row of the experiment.

    Raises:
        SystemExit: If the CSV or a column is missing.
    """
    if not path.is_file():
        raise SystemExit(f"{path}: no such file")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if unknown := [c for c in columns if not rows or c not in rows[0]]:
        raise SystemExit(f"{path}: no column {', '.join(unknown)}; it has {', '.join(rows[0] if rows else [])}")
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row[columns[0]], []).append(row)
    lines = [
        "| " + " | ".join(NAMES.get(c, c) for c in columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join([name, *(cell(group, c) for c in columns[1:])]) + " |" for name, group in groups.items()),
    ]
    return "\n".join(lines) + "\n"


def cell(group: list[dict[str, str]], column: str) -> str:
    """Figures of the seeds of one row, as mean and standard deviation: shares in percent, distances in pixels."""
    texts = [row[column] for row in group if row[column] != ""]
    if not texts:
        return "–"
    if not all(re.fullmatch(r"-?\d+\.\d+", text) for text in texts):
        return ", ".join(texts)
    scale, digits = (1, 2) if any(word in column for word in DISTANCES) else (100, 1)
    values = [scale * float(text) for text in texts]
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


if __name__ == "__main__":
    sys.exit(main())
