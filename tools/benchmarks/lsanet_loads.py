"""How much a benchmark of the lsanet bundle computes, and on which pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.measure import Options
from label_efficient.data.image_data import ImageData, Split

NUM_CLASSES = 8


@dataclass(frozen=True)
class Load:
    """How much one measurement computes.

    Args:
        image_size: Pixels a side in the network.
        stored_size: Pixels a side in memory; smaller where the network's size is made on the device.
        batch_size: Images per step.
        steps: Steps.
        device: Where.
    """

    image_size: int
    stored_size: int
    batch_size: int
    steps: int
    device: str

    @property
    def num_images(self) -> int:
        """Images of one measurement."""
        return self.batch_size * self.steps


def load_for(image_size: int, options: Options, steps: tuple[int, int, int]) -> Load:
    """Choose a load of seconds; `steps` at up to 32 px, 64 px, and above; five times as many on a GPU."""
    index = 0 if image_size <= 32 else 1 if image_size <= 64 else 2
    batch_size, chosen = (64, 32, 8)[index], steps[index]
    if options.device.startswith("cuda"):
        batch_size, chosen = 64, 5 * chosen
    # The paper enlarges 28 x 28 pictures to 224 x 224.
    stored_size = image_size if image_size <= 64 else 28
    return Load(image_size, stored_size, options.batch_size or batch_size, options.steps or chosen, options.device)


def synthetic(load: Load) -> ImageData:
    """Random RGB pictures in memory as uint8, as a MedMNIST file gives them."""
    generator = np.random.default_rng(0)
    shape = (load.num_images, load.stored_size, load.stored_size, 3)
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(load.num_images) % NUM_CLASSES
    split = Split(images, labels.astype(np.int64), [f"{i:05d}" for i in range(load.num_images)])
    classes = [f"class {i}" for i in range(NUM_CLASSES)]
    return ImageData("synthetic", "multi-class", classes, dict.fromkeys(("train", "val", "test"), split), "random")
