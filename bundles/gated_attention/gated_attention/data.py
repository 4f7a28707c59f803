"""Data sets of the bundle: the built-in demo, lists of image files, and images that another program hands over."""

from collections.abc import Mapping
from typing import Any

from label_efficient.data.image_data import ImageData, make_demo
from label_efficient.data.image_sources import load_image_data

from .demo_data import DEMO_CLASSES, make_demo_images

DEMO_COUNTS = {"train": 160, "val": 45, "test": 90}


def load_data(
    dataset: str, *, seed: int = 0, demo_counts: Mapping[str, int] | None = None, **options: Any
) -> ImageData:
    """Load a data set and check it as a whole.

    `dataset` is "demo", "datalist", or the path of a list (`.json`, `.csv`) or of a folder with an `images.csv`; the
    options are those of `image_sources.load_image_data`.
    """

    def own() -> ImageData:
        return make_demo(make_demo_images, demo_counts or DEMO_COUNTS, DEMO_CLASSES, seed)

    return load_image_data(dataset, own, several_labels=False, seed=seed, **options)
