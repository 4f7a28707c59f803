"""Which images are in which batch of an epoch, for every process."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from label_efficient.engine.distributed import rank_and_size


class EpochBatches(Sampler[list[int]]):
    """Positions of every batch of an epoch, this process's share; order and share depend on seed and epoch alone.

    In training each epoch has its own order, and every process as many batches; otherwise the order is that of the
    data, and no image is left out. In training a last batch of fewer than four images is joined to the one before:
    batch norm cannot normalise a single value, and over two or three its gradients explode where the deepest map has
    one position.
    """

    def __init__(self, length: int, batch_size: int, *, training: bool, seed: int = 0) -> None:
        self.length = length
        self.batch_size = batch_size
        self.training = training
        self.seed = seed
        self.rank, self.num_ranks = rank_and_size()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def _share(self) -> int:
        # In training every rank takes the same number of steps, or the last gradient exchange waits for ever.
        return self.length // self.num_ranks if self.training else len(range(self.rank, self.length, self.num_ranks))

    def __len__(self) -> int:
        full, rest = divmod(self._share(), self.batch_size)
        return max(full + (rest >= 4), 1) if self.training else full + (rest > 0)

    def __iter__(self):
        order = np.arange(self.length)
        if self.training:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        mine = order[self.rank :: self.num_ranks][: self._share()]
        starts = [index * self.batch_size for index in range(len(self))]
        for start, end in zip(starts, [*starts[1:], len(mine)], strict=True):
            yield mine[start:end].tolist()


def make_loader(
    dataset: Dataset, batch_size: int, *, training: bool, seed: int = 0, num_workers: int = 0
) -> DataLoader[Any]:
    """Loader of whole batches, those of `EpochBatches`; `num_workers` processes read ahead, 0 for images in memory."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=EpochBatches(len(dataset), batch_size, training=training, seed=seed),  # type: ignore[arg-type]
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        # Of its own: a loader draws a number whenever it begins, which would change what augmentation draws.
        generator=torch.Generator(),
    )
