"""What the network says of a section of a data set: logits, masks, their figures; and the masks as files."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from label_efficient.data.images import read_image
from label_efficient.data.list_checks import Entry
from label_efficient.evaluation.outputs import Outcome
from label_efficient.run_account import Folder

from .data import Part
from .losses import UNKNOWN
from .mask_output import FileGrid, mask_names, read_grid, write_mask
from .transforms import Preprocess


@dataclass
class ChestOutcome(Outcome):
    """What the network says of a section."""

    masks: torch.Tensor | None = None  # probabilities N x S x S
    mask_rows: dict[int, dict[str, float]] = field(default_factory=dict)  # figures by position, of those with a mask

    @property
    def known(self) -> np.ndarray:
        """Positions of the images with a class."""
        return np.flatnonzero(self.targets != UNKNOWN)


def write_masks(
    folder: Folder,
    parts: Mapping[str, Part],
    outcomes: Mapping[str, ChestOutcome],
    preprocess: Preprocess,
    num_workers: int,
) -> None:
    """Write the predicted masks of sections at the size of the pictures."""
    names = mask_names([entry.file for part in parts.values() for entry in part.entries])
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        jobs = [
            pool.submit(_write_mask, entry, masks[position], preprocess, folder / names[entry.file])
            for name, part in parts.items()
            if (masks := outcomes[name].masks) is not None
            for position, entry in enumerate(part.entries)
        ]
        for job in jobs:
            job.result()


def _write_mask(entry: Entry, probabilities: torch.Tensor, preprocess: Preprocess, path: Path) -> None:
    grid = FileGrid(np.eye(4))
    if entry.image.is_file():
        height, width = read_image(entry.image, channels=1).shape[:2]
        probabilities, grid = preprocess.restore(probabilities, height, width), read_grid(entry.image)
    write_mask(path, (probabilities > 0.5).numpy(), grid)
