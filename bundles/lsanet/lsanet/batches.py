"""Batches of a split: the pixels of some of its images as one tensor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from label_efficient.data.image_data import Split, is_block, read_entries
from label_efficient.data.picture_transforms import load_image

from .transforms import Preprocess


class ImageSet(Dataset):
    """Batches of stored images and their labels, by a list of positions.

    `image` is uint8 B x C x H x W, or float32 at `image_size` where the stored sizes differ.

    Args:
        data: A `Split`, or a list of dictionaries with `image` (path) and `label`, see `_label_files.class_index`.
        preprocess: Brings images of different sizes to one size.
        classes: Names of the classes, for a list with names in label files.
    """

    def __init__(
        self, data: Split | Sequence[Mapping[str, Any]], preprocess: Preprocess, classes: Sequence[str] = ()
    ) -> None:
        self.data = data if isinstance(data, Split) else read_entries(data, classes)
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: Sequence[int] | int) -> dict[str, torch.Tensor]:
        positions = np.atleast_1d(np.asarray(indices))
        label = torch.from_numpy(self.data.labels[positions])
        return {"image": self.images(positions), "label": label}

    def images(self, positions: np.ndarray) -> torch.Tensor:
        """Images at these positions, B x C x H x W in 0..255."""
        stored = self.data.images
        if isinstance(stored, np.ndarray) and is_block(stored):
            batch = torch.from_numpy(stored[positions])
            return batch.unsqueeze(1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
        single = [self.image(int(i)) for i in positions]
        return torch.stack([self.preprocess.resize(torch.from_numpy(i).permute(2, 0, 1)) for i in single])

    def image(self, position: int) -> np.ndarray:
        """One image as stored, uint8 H x W (x 3)."""
        stored = self.data.images[position]
        return load_image(stored).permute(1, 2, 0).numpy() if isinstance(stored, Path) else stored
