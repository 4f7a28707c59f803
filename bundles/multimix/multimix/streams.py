"""The streams that a step of training draws from: which images, in which order, and their pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from label_efficient.engine.distributed import rank_and_size

from .data import ChestData, Part

STREAMS = ("mask_labelled", "mask_unlabelled", "class_labelled", "class_unlabelled")
UNKNOWN_MASK = 255  # value of every pixel of a mask that there is not
Positions = dict[str, list[int]]


class StreamBatches(Sampler[Positions]):
    """Positions of every step of an epoch in each stream, this rank's share; a shorter stream begins again.

    A stream is an endless chain of its own shuffled passes. Which part of it a step gets depends on the seed, epoch,
    the step and the rank alone, so that a resumed run draws what the uninterrupted one would have, and no image comes
    twice in a step of all ranks unless the stream is shorter than that.

    Args:
        lengths: Number of images of each stream.
        batch_size: Images of each stream per step and rank.
        steps: Steps of an epoch; None: one pass over the unlabelled images for classification, or, without them, over
            the longest stream.
        seed: Of the orders.

    Raises:
        ValueError: If a stream is empty.
    """

    def __init__(self, lengths: Mapping[str, int], batch_size: int, *, steps: int | None = None, seed: int = 0) -> None:
        empty = [name for name, length in lengths.items() if length < 1]
        if empty or not lengths:
            raise ValueError(f"streams without an image: {', '.join(empty) or 'all'}")
        self.lengths = dict(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.num_ranks = rank_and_size()
        self.epoch = 1
        one_pass = lengths.get("class_unlabelled", max(lengths.values()))
        self.steps = steps or max(round(one_pass / (batch_size * self.num_ranks)), 1)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 1, whose steps the next iteration has."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        passes: dict[tuple[str, int], np.ndarray] = {}
        for step in range((self.epoch - 1) * self.steps, self.epoch * self.steps):
            yield {name: self._draw(name, step, passes) for name in self.lengths}

    def _draw(self, name: str, step: int, passes: dict[tuple[str, int], np.ndarray]) -> list[int]:
        length = self.lengths[name]
        first = (step * self.num_ranks + self.rank) * self.batch_size
        drawn = []
        for place in range(first, first + self.batch_size):
            number, position = divmod(place, length)
            if (name, number) not in passes:
                for key in [key for key in passes if key[0] == name and key[1] < first // length]:
                    del passes[key]
                order = np.random.default_rng((self.seed, STREAMS.index(name), number)).permutation(length)
                passes[name, number] = order
            drawn.append(int(passes[name, number][position]))
        return drawn


class StreamSet(Dataset):
    """Stored images of all streams, by positions in each.

    Gives a batch: each stream's images under its name, uint8 B x 1 x S x S; `mask` (uint8 B x 1 x S x S of 0 and 1, of
    `mask_labelled`), `label` (int64 (B,), of `class_labelled`), `hidden_label` (of `class_unlabelled`). A program such
    as MONAI Label puts a list in the place of `data`; its images are those of `loaded`.
    """

    def __init__(self, data: ChestData | Sequence[Any], loaded: ChestData) -> None:
        self.data = data
        self.streams = {
            name: (loaded.splits[section], positions) for name, (section, positions) in loaded.streams.items()
        }

    @property
    def lengths(self) -> dict[str, int]:
        """Number of images of each stream."""
        return {name: len(positions) for name, (_, positions) in self.streams.items()}

    def __len__(self) -> int:
        return sum(self.lengths.values())

    def __getitem__(self, positions: Positions) -> dict[str, torch.Tensor]:
        batch = {}
        for name, chosen in positions.items():
            part, members = self.streams[name]
            rows = members[chosen]
            batch[name] = torch.from_numpy(part.images[rows])[:, None]
            if name == "mask_labelled":
                batch["mask"] = torch.from_numpy(part.masks[part.mask_rows[rows]])[:, None]
            elif name == "class_labelled":
                batch["label"] = torch.from_numpy(part.labels[rows])
            elif name == "class_unlabelled":
                batch["hidden_label"] = torch.from_numpy(part.hidden_labels[rows])
        return batch


class PartSet(Dataset):
    """Images of one section with what is known of them, by a list of positions.

    `image` uint8 B x 1 x S x S, `label` int64 (B,) or `UNKNOWN`, `mask` uint8 B x 1 x S x S of 0 and 1, or
    `UNKNOWN_MASK` everywhere. A program such as MONAI Label puts a list in the place of `data`; its images are those of
    `loaded`.
    """

    def __init__(self, data: Part | Sequence[Any], loaded: Part | None = None) -> None:
        self.data = data
        part = data if isinstance(data, Part) else loaded
        if part is None:
            raise TypeError(
                f"data is a {type(data).__name__}: expected a section of a data set, or a list and `loaded`"
            )
        self.part = part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = np.asarray(positions)
        images = self.part.images[rows]
        masks = np.full_like(images, UNKNOWN_MASK)
        known = self.part.mask_rows[rows] >= 0
        masks[known] = self.part.masks[self.part.mask_rows[rows[known]]]
        return {
            "image": torch.from_numpy(images)[:, None],
            "label": torch.from_numpy(self.part.labels[rows]),
            "mask": torch.from_numpy(masks)[:, None],
        }
