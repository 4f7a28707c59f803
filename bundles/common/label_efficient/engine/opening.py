"""What a run shows first: the data, the settings that differ from the defaults, the device."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from label_efficient.engine.autocast import half_precision
from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.log import log_to_file, table
from label_efficient.settings import Settings

logger = logging.getLogger(__name__)


class ShownData(Protocol):
    """What is shown of a data set: where it is from, its counts by section, remarks, and notes that warn."""

    name: Any
    source: Any
    task: Any
    notes: Any

    def counts(self) -> list[dict[str, Any]]:
        """Rows of a table."""

    def remarks(self) -> Sequence[str]:
        """Sentences below it."""


class Opening:
    """Starts the log of a run and says what is about to happen.

    Args:
        data: The data set.
        settings: Of the run.
        output_dir: Folder of the run; the log goes to `log_name` in it.
        device: Where it will compute.
        log_name: Name of the log file.
    """

    def __init__(
        self, *, data: ShownData, settings: Settings, output_dir: str, device: str | torch.device, log_name: str
    ) -> None:
        self.data = data
        self.settings = settings
        self.output_dir = Path(output_dir)
        self.device = torch.device(device)
        self.log_name = log_name

    def show(self) -> None:
        """Log it, on rank 0."""
        if rank_and_size()[0] != 0:
            logging.getLogger().setLevel(logging.WARNING)
            return
        log_to_file(self.output_dir / self.log_name)
        if self.data.name == "demo":
            logger.info(
                "SYNTHETIC DEMO DATA: the figures of this run say nothing about medical images. "
                "Use --dataset for your own (docs/README.md)"
            )
        logger.info("data: %s, %s\n%s", self.data.source, self.data.task, table(self.data.counts()))
        for remark in self.data.remarks():
            logger.info("%s", remark)
        for note in self.data.notes:
            logger.warning("%s", note)
        changed = ", ".join(f"{name}={value!r}" for name, value in self.settings.changed.items())
        logger.info("settings other than the defaults: %s", changed or "none")
        threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else threads
        ranks = rank_and_size()[1]
        logger.info("device: %s (%s)%s", self.device, name, f", {ranks} processes" if ranks > 1 else "")
        if self.settings["amp"]:
            half = {"cuda": "float16", "cpu": "bfloat16"}.get(self.device.type, "half precision")
            used = (
                half if half_precision(self.settings["amp"], self.device) else "single precision, the faster one here"
            )
            logger.info("amp=%s: %s", self.settings["amp"], used)
        logger.info("output: %s", self.output_dir)
