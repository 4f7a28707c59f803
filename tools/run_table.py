r"""Train and evaluate the rows of a table, each with several seeds, into one CSV; can be stopped and resumed.

A table is a JSON file: the bundle, settings that all rows share, and the rows with the settings of their own:

    {"bundle": "lsanet",
     "common": {"dataset": "retinamnist", "image_size": 64, "max_epochs": 40},
     "rows": {"baseline": {"method": "baseline"}, "lsanet": {"method": "lsanet"}}}

Saved as methods.json, it becomes bundles/lsanet/docs/results/methods.csv by

    python tools/run_table.py methods.json --seeds 0,1,2 --runs_dir runs/methods \
        --output bundles/lsanet/docs/results/methods.csv --set dataset_dir=/data/medmnist --jobs 2

With `"evaluate": true` in the table no row is trained: its `ckpt_path` has weights, which are evaluated.

The recipes bundles/*/docs/results/*.json are such tables; tools/render_tables.py puts the CSVs into the model cards.

Every run is a command `python -m monai.bundle run` of its own, in its own folder below `--runs_dir`; a run that was
stopped goes on where it was, and one that is already in the CSV with the same settings is not run again. With
`--jobs` several run side by side on one machine, each on its share of the cores (or OMP_NUM_THREADS). Paths of a
table are relative to the repository.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from bundle_paths import ROOT

from label_efficient.files import read_csv, write_csv

SPLITS = {
    "": ("test",),
    "last_": ("last_epoch", "test"),
    "val_": ("validation",),
    "x_": ("cross_domain",),
    "global_": ("test_global",),
    "coverage_": ("coverage",),
}
TASKS = ("classification", "segmentation")
SHOWN = ("acc", "auc", "dice", "x_acc", "x_dice")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the number of rows that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="JSON file with bundle, common and rows")
    parser.add_argument("--seeds", default="0", help="comma-separated seeds (default: 0)")
    parser.add_argument("--output", type=Path, required=True, help="CSV to write or to go on with")
    parser.add_argument("--runs_dir", type=Path, required=True, help="folder of the runs, a folder per row and seed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of this machine, such as dataset_dir",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    options = parser.parse_args(arguments)
    table = read_table(options.table)
    local = dict(item.split("=", 1) for item in options.set)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    done = read_rows(options.output)
    results = {(r["row"], r["seed"]): r for r in done}
    lock = Lock()

    def work(job: tuple[str, int]) -> bool:
        name, seed = job
        settings = {**table["common"], **table["rows"][name], "seed": seed}
        text = json.dumps(settings, sort_keys=True)
        if results.get((name, str(seed)), {}).get("settings") == text:
            print(f"{name}, seed {seed}: already in {options.output}")
            return True
        folder = options.runs_dir / f"{options.table.stem}-{name}-seed{seed}"
        row = run(table["bundle"], settings | local, folder, evaluate=table.get("evaluate", False))
        if row is None:
            return False
        with lock:
            results[name, str(seed)] = {"row": name, "seed": str(seed), **row, "settings": text}
            write_csv(options.output, [results[k] for k in sorted(results, key=lambda k: order(table, k))])
        print(f"{name}, seed {seed}: " + ", ".join(f"{key} {row[key]}" for key in SHOWN if key in row))
        return True

    if options.jobs > 1:
        # Runs that share cores and each use all of them wait for one another: three times slower on two cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // options.jobs, 1)))
    jobs = [(name, seed) for seed in seeds for name in table["rows"]]
    with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
        return sum(not fine for fine in pool.map(work, jobs))


def read_table(path: Path) -> dict[str, Any]:
    """Read and check a table.

    Raises:
        SystemExit: If a key is missing or the bundle is unknown.
    """
    table = json.loads(path.read_text(encoding="utf-8"))
    if missing := [key for key in ("bundle", "common", "rows") if key not in table]:
        raise SystemExit(f"{path}: {', '.join(missing)} missing; expected bundle, common and rows")
    if not (ROOT / "bundles" / table["bundle"]).is_dir():
        raise SystemExit(f"{path}: bundle is {table['bundle']!r}, and bundles/ has no such folder")
    return table


def run(bundle: str, settings: dict[str, Any], folder: Path, *, evaluate: bool = False) -> dict[str, Any] | None:
    """Train and evaluate one row, or only evaluate it; its figures, or None if it failed (see `folder`/run.txt)."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "monai.bundle", "run"]
    names = ["train.json", "evaluate.json"] if evaluate else ["train.json"]
    command += ["--config_file", str([str(ROOT / "bundles" / bundle / "configs" / name) for name in names])]
    for name, value in {**settings, "output_dir": str(folder), **({} if evaluate else {"resume": True})}.items():
        command += [f"--{name}", value if isinstance(value, str) else repr(value)]
    with open(folder / "run.txt", "a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, check=False).returncode
    if code != 0:
        print(f"failed with exit code {code}: {folder / 'run.txt'}", file=sys.stderr)
        return None
    return figures(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))) | {"commit": commit()}


def figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """Figures of a run out of its `metrics.json`.

    Test, test of the last epoch (last_...), validation (val_...), cross-domain (x_...), the global branch on test
    (global_...), reference boxes (coverage_...); of both tasks, if it has two.
    """
    row: dict[str, Any] = {"dataset": metrics["dataset"], "epoch": metrics["chosen_epoch"]}
    for prefix, keys in SPLITS.items():
        part = metrics
        for key in keys:
            part = part.get(key, {})
        for values in [part[task] for task in TASKS if task in part] or [part]:
            row.update({f"{prefix}{n}": f"{v:.4f}" for n, v in values.items() if isinstance(v, float)})
            row.update({f"{prefix}f1_{c['class']}": f"{c['f1']:.4f}" for c in values.get("per_class", [])})
    return row


def commit() -> str:
    """Short hash of the commit, with a + if the tree differs from it."""
    found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def order(table: dict[str, Any], key: tuple[str, str]) -> tuple[int, int]:
    """Place of a result in the CSV: as in the table, then by seed; results of other tables come last."""
    names = list(table["rows"])
    return (names.index(key[0]) if key[0] in names else len(names), int(key[1]))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of an earlier CSV, if there is one; SystemExit: it is not one of this tool."""
    rows = read_csv(path) if path.is_file() else []
    if rows and (missing := {"row", "seed", "settings"} - rows[0].keys()):
        raise SystemExit(
            f"{path}: no column {', '.join(sorted(missing))}: no table of this tool, give another --output"
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
