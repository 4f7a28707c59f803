"""Batches of image files of any sizes for inference: as stored, in bounded memory."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from label_efficient.data.images import quiet
from label_efficient.data.picture_set import PictureSet
from label_efficient.files import open_file

# Pixels of a batch: 48 MiB as stored. 16 images of 1024 x 1024, or 5 of 2048 x 1536; a larger image is a batch.
MOST_PIXELS = 2**24


class PictureBatches(PictureSet):
    """A `PictureSet` that reads the files of a batch at once, in threads.

    Threads, not processes: decoders leave the interpreter to others while they work, and images of some megabytes would
    have to go through shared memory, of which containers have little. One batch is in memory at a time.
    """

    def __init__(self, *, num_workers: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_workers = num_workers

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Items of a batch; what torch's loader calls where a data set has it."""
        with ThreadPoolExecutor(min(max(self.num_workers, 1), len(indices))) as pool:
            return list(pool.map(self.__getitem__, indices))


def limited_batches(
    data: Sequence[Mapping[str, str]], batch_size: int, most_pixels: int = MOST_PIXELS
) -> list[list[int]]:
    """Places of the files (of `find_images`) in their order, in batches of so many images and at most so many pixels.

    The sizes are read from the heads of the files. An image that is larger, or of which that cannot be done without
    the pixels (DICOM, NIfTI, damaged files), is a batch of its own.
    """
    batches: list[list[int]] = []
    taken = most_pixels + 1
    for index, item in enumerate(data):
        pixels = _pixels(item["image"], most_pixels)
        if taken + pixels > most_pixels or len(batches[-1]) == batch_size:
            batches.append([])
            taken = 0
        batches[-1].append(index)
        taken += pixels
    return batches


def _pixels(path: str, unknown: int) -> int:
    try:
        with quiet(), open_file(path) as file, Image.open(file) as picture:
            return picture.width * picture.height
    except Exception:  # whatever is wrong with it, reading it whole will say so
        return unknown


def collate_as_lists(items: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Items to a dictionary of lists; `image` is a list of uint8 3 x H_i x W_i."""
    batch = {key: [item[key] for item in items] for key in items[0]}
    # The stand-in of a bad file is float, and one such image would make float of all where they are joined.
    batch["image"] = [image.to(torch.uint8) for image in batch["image"]]
    return batch
