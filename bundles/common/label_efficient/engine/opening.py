"""What a run shows first: the data, the settings that differ from the defaults, the device."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from label_efficient.engine.autocast import half_precision
from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.log import log_to_file, table
from label_efficient.evaluation.metrics import BINARY
from label_efficient.settings import Settings, SettingsError

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Opening:
    """Starts the log of a run, the file `log_name` in `output_dir`, and says what is about to happen."""

    data: Any
    settings: Settings
    output_dir: str
    device: str | torch.device
    log_name: str

    def show(self) -> None:
        """Log it, on rank 0."""
        if "target_specificity" in self.settings.changed and self.data.task != BINARY:
            task = self.data.task
            raise SettingsError(f"target_specificity has no effect: it is for two classes, and this is {task}")
        if rank_and_size()[0] != 0:
            logging.getLogger().setLevel(logging.WARNING)
            return
        log_to_file(Path(self.output_dir, self.log_name))
        if self.data.name == "demo":
            logger.info(
                "SYNTHETIC DEMO DATA: the figures of this run say nothing about medical images. "
                "Use --dataset for your own (docs/README.md)"
            )
        logger.info("data: %s, %s\n%s", self.data.source, self.data.task, table(self.data.counts()))
        for remark in self.data.remarks():
            logger.info("%s", remark)
        for note in [*self.settings.notes, *self.data.notes]:
            logger.warning("%s", note)
        changed = ", ".join(f"{name}={value!r}" for name, value in self.settings.changed.items())
        logger.info("settings other than the defaults: %s", changed or "none")
        threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
        device, ranks = torch.device(self.device), rank_and_size()[1]
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
        logger.info("device: %s (%s)%s", device, name, f", {ranks} processes" if ranks > 1 else "")
        if amp := self.settings["amp"]:
            half = {"cuda": "float16", "cpu": "bfloat16"}.get(device.type, "half precision")
            used = half if half_precision(amp, device) else "single precision, the faster one here"
            logger.info("amp=%s: %s", amp, used)
        logger.info("output: %s", self.output_dir)
