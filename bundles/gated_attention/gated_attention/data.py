"""Data sets of the bundle: the built-in demo, lists of image files, and images that another program hands over."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from label_efficient.data.class_lists import MULTI_LABEL
from label_efficient.data.image_data import (
    SPLITS,
    ImageData,
    Split,
    check_classes,
    data_of_list,
    demo_seed,
    handed_over_data,
    list_path,
    with_budget,
)
from label_efficient.monai_bridge import handed_over
from label_efficient.settings import SettingsError

from .demo_data import DEMO_CLASSES, make_demo_images

DEMO_COUNTS = {"train": 160, "val": 45, "test": 90}


def load_data(
    dataset: str,
    *,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    label_fraction: float | None = None,
    labels_per_class: int | None = None,
    seed: int = 0,
    num_workers: int = 0,
    cache: bool = True,
    demo_counts: Mapping[str, int] | None = None,
    released: str | None = None,
) -> ImageData:
    """Load a data set and check it as a whole.

    Args:
        dataset: "demo"; "datalist"; or the path of a list (`.json`, `.csv`) or of a folder with an `images.csv`.
        dataset_dir: What the paths of a list are relative to.
        datalist: The list, for "datalist".
        label_fraction: Share of the training labels to keep, stratified.
        labels_per_class: Or their number per class.
        seed: Of the subset and the demo.
        num_workers: Threads that read image files.
        cache: Whether the images of a list are read once and kept in memory.
        demo_counts: Number of demo pictures by split.
        released: `model.json` of the released weights: what the classes are where another program hands
            images over for training, instead of the data set.

    Raises:
        SettingsError: If the settings do not fit together.
        ValueError: If the data have problems; all of them in one message.
    """
    if released is not None and (lists := handed_over()) is not None:
        return handed_over_data(lists, Path(released))
    if dataset != "datalist" and datalist is not None:
        raise SettingsError(f"datalist={datalist!r} is only read with dataset='datalist', and dataset is {dataset!r}")
    if dataset == "demo":
        data = _demo(demo_counts or DEMO_COUNTS, seed)
    else:
        path = list_path(dataset, datalist, ("demo", "datalist"), "'demo', 'datalist'")
        data = data_of_list(path, dataset_dir, num_workers, cache)
    if data.task == MULTI_LABEL:
        raise ValueError(
            f"{data.source}: its images have lists of labels, and this bundle learns one class per image: give the "
            "index or the name of the class, or use the lsanet bundle"
        )
    data = with_budget(data, label_fraction=label_fraction, labels_per_class=labels_per_class, seed=seed)
    check_classes(data)
    return data


def _demo(counts: Mapping[str, int], seed: int) -> ImageData:
    splits = {}
    for split in SPLITS:
        pictures, labels, _ = make_demo_images(counts[split], seed=demo_seed(split, seed))
        images = np.empty(len(pictures), dtype=object)
        images[:] = pictures
        splits[split] = Split(images, labels, [f"demo/{split}/{i:04d}" for i in range(len(labels))])
    source = "built-in synthetic demo pictures, of no clinical meaning"
    return ImageData("demo", "multi-class", list(DEMO_CLASSES), splits, source)
