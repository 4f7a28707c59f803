"""Batches of a split: images of any sizes as they are stored."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from label_efficient.data.image_data import Split


class StoredImages(Dataset):
    """Batches by a list of positions: `image`, what `images` gives, and `label`, int64 (B,).

    A program such as MONAI Label puts a list in the place of `data`; its images are those of `loaded`.
    """

    def __init__(self, data: Split | Sequence[Any], loaded: Split | None = None) -> None:
        split = data if loaded is None else loaded
        if not isinstance(split, Split):
            raise TypeError(f"data is a {type(data).__name__}: expected a split of a data set, or a list and `loaded`")
        self.data = split

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: Sequence[int] | int) -> dict[str, Any]:
        positions = np.atleast_1d(np.asarray(indices))
        return {"image": self.images(positions), "label": torch.from_numpy(self.data.labels[positions])}

    def images(self, positions: np.ndarray) -> Any:
        """Images at these positions: a list of uint8 C x H_i x W_i."""
        return [torch.from_numpy(self.image(int(i))).permute(2, 0, 1) for i in positions]

    def image(self, position: int) -> np.ndarray:
        """One image as stored, uint8 H x W (x C)."""
        return self.data.picture(position)
