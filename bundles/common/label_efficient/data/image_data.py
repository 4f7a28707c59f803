"""Data sets of images with classes in memory: their splits, counts, checksum and class weights."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.class_lists import MULTI_LABEL, SPLITS
from label_efficient.data.image_copies import Compared, Copy
from label_efficient.data.images import read_image
from label_efficient.data.label_files import class_index
from label_efficient.data.tables import listed
from label_efficient.settings import SettingsError

DEMO_SOURCE = "built-in synthetic demo pictures, of no clinical meaning"


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        images: uint8 N x H x W or N x H x W x 3 in memory; or one by one, uint8 H x W (x 3), or the paths of files.
        labels: int64 (N,), or 0/1 N x K for multi-label.
        files: Name of every image, for tables.
        hashes: (N,) of `image_hashes.HASH`; None where they are not known.
    """

    images: np.ndarray | Sequence[np.ndarray | Path]
    labels: np.ndarray
    files: list[str]
    hashes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, index: int) -> np.ndarray:
        """One image as stored, uint8 H x W (x 3)."""
        stored = self.images[index]
        return read_image(stored) if isinstance(stored, Path) else stored

    @property
    def is_block(self) -> bool:
        """Whether the images are one array in memory rather than one by one."""
        return isinstance(self.images, np.ndarray) and self.images.dtype != object


@dataclass(frozen=True)
class ImageData:
    """A data set: its splits ("train", "val", "test"), and what its labels mean.

    `task` is one of MedMNIST's names, such as "multi-class"; `classes` has the names in the order of the network's
    outputs; `unlabelled` counts the training images left out by the label budget; `source` and `notes` are for people.
    `published` says that the splits are those that published figures stand on; `copies` has images that are one.
    """

    name: str
    task: str
    classes: list[str]
    splits: dict[str, Split]
    source: str
    unlabelled: int = 0
    notes: list[str] = field(default_factory=list)
    published: bool = False
    copies: list[Copy] = field(default_factory=list)

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels."""
        return self.task == MULTI_LABEL

    def counts(self) -> list[dict[str, Any]]:
        """Images by class (rows) and split (columns), and their sum."""
        sums = {"class": "images", **{split: len(part) for split, part in self.splits.items()}}
        return [*count_classes(self.classes, self.splits), sums]

    def remarks(self) -> list[str]:
        """What else to know of the counts."""
        return [f"{self.unlabelled} training images are left without a label"] if self.unlabelled else []

    def compared(self) -> dict[str, Compared]:
        """The splits whose hashes are known, as `image_copies` compares them."""
        return {
            name: Compared(part.files, part.hashes, [{"label": label} for label in part.labels.tolist()], part.picture)
            for name, part in self.splits.items()
            if part.hashes is not None
        }

    def fingerprint(self) -> str:
        """Checksum over every image as stored (or, uncached, its path), label and split."""
        digest = hashlib.sha256()
        for name, part in self.splits.items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(part.labels).tobytes())
            for image in [part.images] if part.is_block else part.images:
                if isinstance(image, np.ndarray):
                    digest.update(b"" if part.is_block else str(image.shape).encode())
                    digest.update(np.ascontiguousarray(image).reshape(-1).data)  # a view: bytes would be a copy
                else:
                    digest.update(str(image).encode())
        return digest.hexdigest()

    def class_weights(self, setting: str | Sequence[float]) -> list[float] | None:
        """Weights of the classes in the cross-entropy, see `class_weights`."""
        return class_weights(setting, self.classes, self.splits["train"].labels)


def count_classes(classes: Sequence[str], splits: Mapping[str, Any], heading: str = "class") -> list[dict[str, Any]]:
    """Images by class (rows, their name under `heading`) and split (columns), of splits that have `labels`."""
    return [
        {heading: name}
        | {
            split: int((part.labels[:, index] if part.labels.ndim == 2 else part.labels == index).sum())
            for split, part in splits.items()
        }
        for index, name in enumerate(classes)
    ]


def check_classes(classes: Sequence[str], splits: Mapping[str, Any], source: str) -> None:
    """Refuse data (ValueError) with one class alone, one without images, or a label that all of val have."""
    problems = []
    if len(classes) < 2:
        problems.append(f"there is only the class {classes[0]!r}, and a classifier needs two")
    for row in count_classes(classes, splits):
        # Training needs every class, and without one the AUC that chooses the epoch is undefined.
        problems += [f"class {row['class']!r} has no image in {s}" for s in ("train", "val") if row[s] == 0]
    labels = splits["val"].labels
    if labels.ndim == 2:
        always = [name for name, found in zip(classes, labels.all(axis=0), strict=True) if found]
        problems += [f"label {name!r} is present in every image of val: its AUC is undefined" for name in always]
    if problems:
        advice = "\n(tools/make_data_lists.py cuts splits that all have every class)"
        raise ValueError(listed(source, problems) + advice)


def class_weights(setting: str | Sequence[float], classes: Sequence[str], labels: np.ndarray) -> list[float] | None:
    """Weights of the classes in the cross-entropy, for the labels of the training images: int64 (N,), or 0/1 N x K.

    The setting is "none"; "balanced", inverse frequency; or the weights. Their mean over the images (over the labels,
    where an image can have several) is made 1, so that they change neither learning rate nor the other terms of a loss.
    Another number of weights than that of the classes, or one that is not positive, is a SettingsError.
    """
    if setting == "none":
        return None
    try:
        found = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(classes))
        weights = 1 / found if setting == "balanced" else np.asarray(setting, dtype=np.float64)
    except (TypeError, ValueError):
        weights = np.empty(0)
    if weights.shape != (len(classes),) or not all(0 < w < math.inf for w in weights):
        raise SettingsError(
            f"class_weights={setting}: expected none, balanced or {len(classes)} numbers above 0, for "
            f"{', '.join(classes)}"
        )
    return (weights / (weights if labels.ndim == 2 else weights[labels]).mean()).tolist()


def read_entries(entries: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Split:
    """Split of dictionaries with `image` (path) and `label`, see `label_files.class_index`."""
    paths = [Path(str(entry["image"])) for entry in entries]
    labels = np.asarray([class_index(entry["label"], classes) for entry in entries], dtype=np.int64)
    return Split(paths, labels, [str(p) for p in paths])


def make_demo(
    make: Callable[..., tuple[Any, np.ndarray]], counts: Mapping[str, int], classes: Sequence[str], seed: int
) -> ImageData:
    """The built-in demo of a bundle: `make` gives so many pictures and their labels by a `seed`; `counts` by split."""
    splits = {}
    for index, split in enumerate(SPLITS):
        images, labels = make(counts[split], seed=demo_seed(index, seed))
        splits[split] = Split(images, labels, [f"demo/{split}/{i:04d}" for i in range(len(labels))])
    return ImageData("demo", "multi-class", list(classes), splits, DEMO_SOURCE)


def demo_seed(index: int, seed: int, beyond: int = 2000) -> int:
    """Seed of the demo's pictures of the split of this index, 0 for training.

    Those of validation (1000) and tests (2000, ...) do not depend on the seed of the run, so that figures stay
    comparable. A seed of a run from 1000 gets `beyond` added, so that none gives the same pictures for training.
    """
    return 1000 * index if index else seed if seed < 1000 else seed + beyond
