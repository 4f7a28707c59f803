"""Measure the speed and memory of a bundle, side by side with what it is compared with.

    python tools/benchmark.py lsanet             everything, a few minutes on two cores
    python tools/benchmark.py lsanet --only epoch,step --image_sizes 28,64 --repeats 9
    python tools/benchmark.py multimix
    python tools/benchmark.py gated_attention

The contenders take turns (A B A B ...) in one process; ratios are ours / against within a round. A bar that
is missed is printed so, and makes the exit status 1 with --strict. Rows go to a CSV, where they replace those
of the same benchmark, size, contenders and device. The figures mean little while the machine does other work.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import MISSED, Benchmark, Options, environment, run_benchmark, table, write_csv
from bundle_paths import ROOT, use_bundle

# A bundle's cases: a module with `BENCHMARKS`, by name a function of `Options` that makes them one by one.
BUNDLES = {name: f"benchmarks.{name}" for name in ("lsanet", "multimix", "gated_attention")}
IMAGE_SIZES = {"lsanet": [28, 64, 224], "multimix": [128, 256], "gated_attention": [128, 224]}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _sizes(text: str) -> list[int]:
    sizes = [int(name) for name in _names(text)]
    if not sizes or min(sizes) < 1:
        raise ValueError
    return sizes


def _whole(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text)
        if number < low:
            raise ValueError
        return number

    # argparse names the type in its message.
    read.__name__ = f"whole number (at least {low})"
    return read


_sizes.__name__ = "list of sizes (such as 28,64)"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser: one sub-command per bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="bundle", required=True, metavar="BUNDLE")
    for bundle in BUNDLES:
        output = ROOT / "bundles" / bundle / "docs" / "results" / "benchmark.csv"
        sub = commands.add_parser(bundle, help=f"the benchmarks of {bundle}", allow_abbrev=False)
        sub.add_argument("--only", type=_names, metavar="NAMES", help="comma-separated; all by default")
        sub.add_argument("--image_sizes", type=_sizes, default=IMAGE_SIZES[bundle], metavar="SIZES")
        sub.add_argument("--repeats", type=_whole(1), metavar="N", help="rounds of each; by default its own")
        sub.add_argument("--steps", type=_whole(1), metavar="N", help="training steps of a measurement")
        sub.add_argument("--batch_size", type=_whole(2), metavar="N", help="images of a step")
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        sub.add_argument("--output", type=Path, default=output, metavar="FILE.csv")
        sub.add_argument("--strict", action="store_true", help="exit with 1 where a bar is missed")
    return parser


def chosen_cases(
    makers: dict[str, Callable[[Options], Iterator[Benchmark]]], only: list[str] | None, options: Options
) -> Iterator[Benchmark]:
    """The benchmarks one by one, each made when the one before is done with its memory.

    Raises:
        ValueError: If a name is unknown.
    """
    if unknown := sorted(set(only or ()) - set(makers)):
        raise ValueError(f"--only has {', '.join(unknown)}: expected names out of {', '.join(makers)}")
    return (case for name, make in makers.items() if only is None or name in only for case in make(options))


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what the command line says, keeping the CSV up to date; return the rows."""
    import torch

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device is {device}, and torch sees no GPU here")
    options = Options(args.image_sizes, device, args.batch_size, args.steps)
    use_bundle(args.bundle)
    makers = importlib.import_module(BUNDLES[args.bundle]).BENCHMARKS
    cases = chosen_cases(makers, args.only, options)
    place = environment(device)
    print(f"{place['device']}, {place['threads']} threads, torch {place['torch']}", file=sys.stderr)
    if os.name == "posix" and (load := os.getloadavg()[0]) > 0.5:
        print(f"the machine is not idle (load {load:.1f}): do not trust these figures", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for case in cases:
        started = time.perf_counter()
        rows += [row | place for row in run_benchmark(case, args.repeats)]
        # Written after each, so that nothing is lost when somebody stops the rest.
        write_csv(args.output, rows)
        size = f" {case.image_size} px" if case.image_size else ""
        print(f"{case.name}{size}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run a bundle's benchmarks; return the exit status."""
    args = make_parser().parse_args(argv)
    warnings.filterwarnings("ignore")
    logging.getLogger("ignite").setLevel(logging.WARNING)
    try:
        rows = run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not rows:
        print("nothing was measured: no chosen benchmark is for these sizes")
        return 0
    print(table(rows))
    missed = sum(row["holds"] == MISSED for row in rows)
    held = sum(row["bar"] != "" for row in rows) - missed
    print(f"{held} bars hold, {missed} missed; written to {args.output}")
    return 1 if args.strict and missed else 0


if __name__ == "__main__":
    sys.exit(main())
