"""Which images are in which batch of an epoch, for every process."""

import numpy as np
from torch.utils.data import Sampler


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
