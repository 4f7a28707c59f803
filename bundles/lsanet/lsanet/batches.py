"""Batches of a split: the pixels of some of its images as one tensor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from label_efficient.data.image_data import Split
from label_efficient.data.stored_images import StoredImages

from .transforms import Preprocess


class ImageSet(StoredImages):
    """Stored images as one tensor: uint8, or float32 where `preprocess` brings different sizes to `image_size`."""

    def __init__(self, data: Split | Sequence[Any], preprocess: Preprocess, loaded: Split | None = None) -> None:
        super().__init__(data, loaded)
        self.preprocess = preprocess

    def images(self, positions: np.ndarray) -> torch.Tensor:
        """Images at these positions, B x C x H x W in 0..255."""
        if self.data.is_block:
            batch = torch.from_numpy(np.asarray(self.data.images)[positions])
            return batch.unsqueeze(1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
        return torch.stack([self.preprocess.resize(image) for image in super().images(positions)])
