"""Data sets of the bundle: the built-in demo, lists of image files, and images that another program hands over."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from label_efficient.data.class_lists import SPLITS
from label_efficient.data.image_data import ImageData, Split, demo_seed
from label_efficient.data.image_sources import load_image_data

from .demo_data import DEMO_CLASSES, make_demo_images

DEMO_COUNTS = {"train": 160, "val": 45, "test": 90}


def load_data(
    dataset: str, *, seed: int = 0, demo_counts: Mapping[str, int] | None = None, **options: Any
) -> ImageData:
    """Load a data set and check it as a whole.

    Args:
        dataset: "demo"; "datalist"; or the path of a list (`.json`, `.csv`) or of a folder with an `images.csv`.
        seed: Of the demo and the label budget.
        demo_counts: Number of demo pictures by split.
        options: Of `image_sources.load_image_data`: where the images are, label budget, reading.
    """

    def own() -> ImageData | None:
        return _demo(demo_counts or DEMO_COUNTS, seed) if dataset == "demo" else None

    return load_image_data(
        dataset,
        own,
        known=("demo", "datalist"),
        others="'demo', 'datalist'",
        several_labels=False,
        seed=seed,
        **options,
    )


def _demo(counts: Mapping[str, int], seed: int) -> ImageData:
    splits = {}
    for split in SPLITS:
        pictures, labels = make_demo_images(counts[split], seed=demo_seed(split, seed))
        images = np.empty(len(pictures), dtype=object)
        images[:] = pictures
        splits[split] = Split(images, labels, [f"demo/{split}/{i:04d}" for i in range(len(labels))])
    source = "built-in synthetic demo pictures, of no clinical meaning"
    return ImageData("demo", "multi-class", list(DEMO_CLASSES), splits, source)
