"""What a run shows first: the data, the settings that differ from the defaults, the device."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch

from label_efficient.data.seen_images import check_unseen
from label_efficient.engine.autocast import half_precision
from label_efficient.engine.distributed import rank_and_size
from label_efficient.engine.log import log_to_file, table
from label_efficient.run_folder import RunFolder
from label_efficient.settings import Settings, SettingsError

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Opening:
    """Takes the folder of a run, starts its log, the file `log_name` there, and says what is about to happen.

    Weights at `ckpt_path`, that it starts from or evaluates, must not have seen the images of its tests.
    """

    data: Any
    settings: Settings
    run_folder: RunFolder
    device: str | torch.device
    log_name: str
    ckpt_path: str | None = None

    def show(self) -> None:
        """Log it, on rank 0."""
        if "target_specificity" in self.settings.changed and len(self.data.classes) != 2:
            raise SettingsError(
                f"target_specificity has no effect: it is for two classes, and these are {len(self.data.classes)}"
            )
        self.data.notes[:0] = check_unseen(self.data, self.ckpt_path, self.settings["copies"])
        self.run_folder.open()
        if rank_and_size()[0] != 0:
            logging.getLogger().setLevel(logging.WARNING)
            return
        log_to_file(self.run_folder.file(self.log_name))
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
        stays = ", where the earlier run stays until this one has a model" if self.run_folder.earlier else ""
        logger.info("output: %s%s", self.run_folder.output_dir, stays)
