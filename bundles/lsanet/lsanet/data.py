"""Data sets: the built-in demo, MedMNIST files, and lists of image files; kept as uint8 at their stored size."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from label_efficient.data.class_lists import MULTI_LABEL
from label_efficient.data.image_data import ImageData, Split, make_demo
from label_efficient.data.image_sources import load_image_data
from label_efficient.data.images import MOST_PIXELS

from .demo_data import DEMO_CLASSES, make_demo_images
from .medmnist_files import MEDMNIST_FLAGS, find_npz, medmnist_info, official_flag, read_npz

DEMO_COUNTS = {"train": 320, "val": 160, "test": 320}


def load_data(
    dataset: str,
    *,
    dataset_dir: str | None = None,
    seed: int = 0,
    demo_size: int = 64,
    demo_counts: Mapping[str, int] | None = None,
    **options: Any,
) -> ImageData:
    """Load a data set and check it as a whole.

    Args:
        dataset: "demo"; a 2-D MedMNIST flag such as "bloodmnist"; "datalist"; or the path of a MedMNIST-layout
            `.npz`, of a list (`.json`, `.csv`), or of a folder with an `images.csv`.
        dataset_dir: Where MedMNIST files lie, or what the paths of a list are relative to.
        seed: Of the demo and the label budget.
        demo_size: Pixels a side.
        demo_counts: Pictures by split.
        options: Of `image_sources.load_image_data`: the list, label budget, reading.
    """

    def own() -> ImageData:
        if dataset == "demo":
            make = partial(make_demo_images, size=demo_size)
            return make_demo(make, demo_counts or DEMO_COUNTS, DEMO_CLASSES, seed)
        return _from_npz(dataset, dataset_dir, options.get("max_pixels", MOST_PIXELS))

    flags = ", ".join(flag for flag in MEDMNIST_FLAGS if "_" not in flag)
    others = f"'demo', 'datalist', a 2-D MedMNIST flag ({flags}; 28 pixels, or with _64, _128 or _224), a .npz file"
    known = ["demo", "datalist"]
    if Path(dataset).suffix.lower() == ".npz":
        known.append(dataset)
    elif not dataset.lower().endswith("3d"):  # a 3-D set is no misspelt 2-D one
        known += MEDMNIST_FLAGS
    data = load_image_data(dataset, own, known=known, others=others, dataset_dir=dataset_dir, seed=seed, **options)
    if data.multi_label and all((part.labels.sum(axis=1) == 1).all() for part in data.splits.values()):
        data.notes.append(
            "every image has exactly one of the labels, and they are learned as independent yes or no: if the lists "
            "of 0 and 1 stand for classes that exclude each other, give the index of the class instead"
        )
    return data


def _from_npz(dataset: str, dataset_dir: str | None, max_pixels: int) -> ImageData:
    path = find_npz(dataset, dataset_dir)
    flag = official_flag(dataset, path)
    arrays, classes = read_npz(path, max_pixels=max_pixels)
    splits = {
        split: Split(images, labels, [f"{path.stem}/{split}/{i:05d}" for i in range(len(labels))])
        for split, (images, labels) in arrays.items()
    }
    labels = splits["train"].labels
    if flag is not None:
        info = medmnist_info(flag)
        task, classes = info["task"], list(info["label"].values())
    else:
        if classes is None:
            highest = max(int(part.labels.max()) for part in splits.values())
            count = labels.shape[1] if labels.ndim == 2 else min(highest, len(labels)) + 1
            if labels.ndim == 1 and highest >= count:
                raise ValueError(f"{path}: labels go up to {highest}, with {len(labels)} images for training")
            classes = [f"class {i}" for i in range(count)]
        task = MULTI_LABEL if labels.ndim == 2 else "binary-class" if len(classes) == 2 else "multi-class"
    return ImageData(path.stem, task, classes, splits, f"{path.name} (MedMNIST layout)", published=flag is not None)
