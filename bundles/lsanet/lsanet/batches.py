"""Batches of a split: which images, in which order, and their pixels as one tensor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from .data import Split, is_block, read_entries
from .transforms import Preprocess, load_image


class ImageSet(Dataset):
    """Batches of stored images and their labels, by a list of positions.

    `image` is uint8 B x C x H x W, or float32 at `image_size` where the stored sizes differ.

    Args:
        data: A `Split`, or a list of dictionaries with `image` (path) and `label`, see `label_files.class_index`.
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


class EpochBatches(Sampler[list[int]]):
    """Positions of every batch of an epoch, this rank's share; order and share depend on seed and epoch alone.

    In training a last batch of fewer than four images is joined to the one before: batch norm cannot normalise a
    single value, and over two or three its gradients explode where the deepest map has one position.

    Args:
        length: Number of images.
        batch_size: Images per batch and rank.
        seed: Of the order.
        shuffle: Whether each epoch has its own order; otherwise that of the data.
        rank: Of this process, among `num_ranks`.
        num_ranks: Number of processes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.num_ranks = num_ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def _share(self) -> int:
        # In training every rank takes the same number of steps, or the last gradient exchange waits for ever.
        return self.length // self.num_ranks if self.shuffle else len(range(self.rank, self.length, self.num_ranks))

    def __len__(self) -> int:
        full, rest = divmod(self._share(), self.batch_size)
        return max(full + (rest >= (4 if self.shuffle else 1)), 1)

    def __iter__(self):
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        mine = order[self.rank :: self.num_ranks][: self._share()]
        count = len(self)
        for index in range(count):
            end = len(mine) if index == count - 1 else (index + 1) * self.batch_size
            yield mine[index * self.batch_size : end].tolist()
