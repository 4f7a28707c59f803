"""The measuring core of the benchmarks: interleaved, with medians and spread, bars, a CSV and a table."""

from __future__ import annotations

import csv
import gc
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from label_efficient import files

SHOWN = (
    "benchmark",
    "image_size",
    "ours",
    "against",
    "unit",
    "median_ours",
    "median_against",
    "ratio",
    "ratio_min",
    "ratio_max",
    "bar",
    "holds",
)
COLUMNS = (*SHOWN, "repeats", "batch_size", "device", "threads", "torch", "monai", "commit")
# A row that is measured again replaces the one with the same values of these.
KEY = ("benchmark", "image_size", "ours", "against", "device")

NO_BAR, HOLDS, MISSED = "", "yes", "missed"


@dataclass(frozen=True)
class Bar:
    """A limit for ours against another, and the side of it that is right.

    Args:
        limit: Of the ratio ours / against, or of the difference ours - against.
        at_least: Whether more is better (images per second) rather than less (seconds, bytes).
        of_difference: Whether the limit is one of the difference, in the benchmark's unit.
    """

    limit: float
    at_least: bool = False
    of_difference: bool = False

    def holds(self, ratio: float, difference: float) -> bool:
        """Whether a measured ratio, or difference, is on the right side; what is not a number never is."""
        value = difference if self.of_difference else ratio
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:{'+g' if self.of_difference else '.2f'}}"


@dataclass(frozen=True)
class Benchmark:
    """What is measured side by side.

    Args:
        name: Of the benchmark.
        unit: Of every measurement.
        ours: Name of our contender.
        contenders: By name, a function that measures once; ours and all others, in the order they take turns.
        bars: By name of another contender, the bar of ours against it; without one it is only compared.
        image_size: Pixels a side, where the benchmark has one.
        batch_size: Images per step, where the benchmark has one.
        repeats: Measurements of each, unless the caller chooses.
        warm_up: Whether a first round is thrown away.
    """

    name: str
    unit: str
    ours: str
    contenders: Mapping[str, Callable[[], float]]
    bars: Mapping[str, Bar]
    image_size: int | None = None
    batch_size: int | None = None
    repeats: int = 5
    warm_up: bool = True

    def __post_init__(self) -> None:
        if unknown := {self.ours, *self.bars} - set(self.contenders):
            raise ValueError(f"{self.name}: {sorted(unknown)} are no contenders, which are {list(self.contenders)}")


@dataclass(frozen=True)
class Options:
    """What the command line says about the cases.

    Args:
        image_sizes: Pixels a side.
        device: "cpu" or a CUDA device.
        batch_size: Images per step; None leaves it to the case.
        steps: Steps per measurement; None leaves it to the case.
    """

    image_sizes: Sequence[int]
    device: str = "cpu"
    batch_size: int | None = None
    steps: int | None = None


def interleave(
    contenders: Mapping[str, Callable[[], float]], repeats: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Measure A B A B ..., so that what else the machine does hits all alike; `repeats` values of each."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-1 if warm_up else 0, repeats):
        for name, contender in contenders.items():
            gc.collect()  # else one pays for the other's garbage
            value = contender()
            if number >= 0:
                measured[name].append(value)
    return measured


def compare(ours: Sequence[float], against: Sequence[float]) -> dict[str, float]:
    """Medians, and median and range of the ratios ours / against of the rounds."""
    ratios = [a / b if b else math.nan for a, b in zip(ours, against, strict=True)]
    return {
        "median_ours": statistics.median(ours),
        "median_against": statistics.median(against),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def run_benchmark(benchmark: Benchmark, repeats: int | None = None) -> list[dict[str, Any]]:
    """Measure; one row of `SHOWN` columns, and a few more, for every contender beside ours."""
    repeats = repeats or benchmark.repeats
    measured = interleave(benchmark.contenders, repeats, benchmark.warm_up)
    ours = measured.pop(benchmark.ours)
    rows = []
    for against, values in measured.items():
        bar = benchmark.bars.get(against)
        figures = compare(ours, values)
        difference = statistics.median(a - b for a, b in zip(ours, values, strict=True))
        holds = NO_BAR if bar is None else HOLDS if bar.holds(figures["ratio"], difference) else MISSED
        rows.append(
            {
                "benchmark": benchmark.name,
                "image_size": benchmark.image_size or "",
                "ours": benchmark.ours,
                "against": against,
                "unit": benchmark.unit,
                **figures,
                "bar": "" if bar is None else str(bar),
                "holds": holds,
                "repeats": repeats,
                "batch_size": benchmark.batch_size or "",
            }
        )
    return rows


def environment(device: str) -> dict[str, str]:
    """Columns that say where a row was measured."""
    import torch

    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    return {
        "device": f"{device} ({name})",
        "threads": str(torch.get_num_threads()),
        "torch": version("torch"),
        "monai": version("monai"),
        "commit": _commit(),
    }


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip()


def format_cell(value: Any) -> str:
    """Write four significant digits of a number, without an exponent where it can be read without."""
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value) or value == 0 or not 1e-3 <= abs(value) < 1e9:
        return f"{value:.4g}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = SHOWN) -> str:
    """Rows as aligned plain text: text to the left, numbers to the right."""
    content = list(rows)
    cells = [[c.replace("_", " ") for c in columns], *[[format_cell(r[c]) for c in columns] for r in content]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [all(isinstance(r[c], (int, float)) or r[c] == "" for r in content) for c in columns]
    lines = [
        "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric, strict=True))
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows, whole or not at all; the file's rows that were not measured again stay."""
    written = [{c: format_cell(row.get(c, "")) for c in COLUMNS} for row in rows]
    measured = {tuple(row[c] for c in KEY) for row in written}
    kept = [row for row in read_csv(path) if tuple(row[c] for c in KEY) not in measured]
    files.write_csv(path, [*kept, *written], COLUMNS)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of an earlier run, none where there is no file.

    Raises:
        ValueError: If the file is no benchmark's.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} is no CSV of this tool: its columns are {reader.fieldnames}, not {list(COLUMNS)}")
        return list(reader)


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """Wall time of some work, the device's included."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: str) -> None:
    """Wait for the work that has been given to a GPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """Result of a module's function in a new interpreter, whose memory nothing else has touched."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def process_memory() -> tuple[int, int]:
    """Bytes of memory this process has now, and its most so far.

    Without /proc the first is the most so far, too.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: a new process starts with the peak of the one that it was forked from.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in fields:
            now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
            return now, peak
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak
