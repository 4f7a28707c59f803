"""How long the lsanet bundle's demo takes from the command to its first training step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bundle_paths import ROOT

from benchmarks.measure import Bar, Benchmark, Options, seconds

CONFIG = ROOT / "bundles" / "lsanet" / "configs" / "train.json"
FIRST_STEP_STATUS = 77
# The command as it is, in a process that ends the moment any optimizer has made its first step.
UNTIL_FIRST_STEP = f"""
import os, runpy
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *args: os._exit({FIRST_STEP_STATUS}))
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


def time_of_command(arguments: Sequence[str], status: int, folder: str) -> float:
    """Seconds from the start of a Python process to its end.

    Raises:
        OSError: If it ends otherwise than expected.
    """
    found: list[subprocess.CompletedProcess] = []

    def command() -> None:
        found.append(
            subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        )

    elapsed = seconds(command)
    if found[0].returncode != status:
        raise OSError(f"a timed command ended with {found[0].returncode}:\n{found[0].stderr[-2000:]}")
    return elapsed


def startup_benchmarks(options: Options) -> Iterator[Benchmark]:
    """The demo's command until its first training step is done, against importing the libraries."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["run", "training", "--config_file", str(CONFIG), "--max_epochs", "1"]
        command += ["--device", options.device, "--output_dir", str(Path(folder) / "run")]
        yield Benchmark(
            "startup",
            "s",
            "demo to first step",
            {
                "demo to first step": lambda: time_of_command(
                    ["-c", UNTIL_FIRST_STEP, *command], FIRST_STEP_STATUS, folder
                ),
                "importing monai.bundle": lambda: time_of_command(
                    ["-c", "import torch, ignite, monai, monai.bundle"], 0, folder
                ),
            },
            {"importing monai.bundle": Bar(4.0, of_difference=True)},
            repeats=3,
        )
