"""Data sets of images with classes: their splits, counts and checksum; from lists, or handed over."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.class_lists import MULTI_LABEL, SPLITS
from label_efficient.data.label_files import class_index
from label_efficient.data.subsets import labelled_subset
from label_efficient.data.tables import listed
from label_efficient.settings import SettingsError


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        images: uint8 N x H x W or N x H x W x 3 in memory, or paths of files.
        labels: int64 (N,), or 0/1 N x K for multi-label.
        files: Name of every image, for tables.
    """

    images: np.ndarray | list[Path]
    labels: np.ndarray
    files: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """The part of the split at these positions."""
        images = self.images[indices] if isinstance(self.images, np.ndarray) else [self.images[i] for i in indices]
        return Split(images, self.labels[indices], [self.files[i] for i in indices])


@dataclass(frozen=True)
class ImageData:
    """A data set: its splits by name, and what its labels mean.

    Attributes:
        name: For tables and folder names.
        task: One of MedMNIST's task names, e.g. "multi-class".
        classes: Name of every class, in the order of the network's outputs.
        splits: "train", "val" and "test".
        unlabelled: Training images left out by the label budget.
        source: Where the data come from, for people.
    """

    name: str
    task: str
    classes: list[str]
    splits: dict[str, Split]
    source: str
    unlabelled: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels."""
        return self.task == MULTI_LABEL

    def counts(self) -> list[dict[str, Any]]:
        """Images by class (rows) and split (columns), and their sum."""
        rows = []
        for index, name in enumerate(self.classes):
            row: dict[str, Any] = {"class": name}
            for split, part in self.splits.items():
                row[split] = int((part.labels[:, index] if self.multi_label else part.labels == index).sum())
            rows.append(row)
        return [*rows, {"class": "images", **{split: len(part) for split, part in self.splits.items()}}]

    def remarks(self) -> list[str]:
        """What else to know of the counts."""
        return [f"{self.unlabelled} training images are left without a label"] if self.unlabelled else []

    def fingerprint(self) -> str:
        """Checksum over every image as stored (or, uncached, its path), label and split."""
        digest = hashlib.sha256()
        for name, part in self.splits.items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(part.labels).tobytes())
            block = is_block(part.images)
            for image in [part.images] if block else part.images:
                if isinstance(image, np.ndarray):
                    digest.update(b"" if block else str(image.shape).encode())
                    digest.update(np.ascontiguousarray(image).reshape(-1).data)  # a view: bytes would be a copy
                else:
                    digest.update(str(image).encode())
        return digest.hexdigest()

    def class_weights(self, setting: str | Sequence[float]) -> list[float] | None:
        """Weights of the classes in the cross-entropy, see `class_weights`."""
        return class_weights(setting, self.classes, self.splits["train"].labels)


def class_weights(setting: str | Sequence[float], classes: Sequence[str], labels: np.ndarray) -> list[float] | None:
    """Weights of the classes in the cross-entropy.

    Args:
        setting: "none"; "balanced", inverse frequency with mean 1 over images; or the weights.
        classes: Their names.
        labels: Of the training images that have one, int64 (N,), or 0/1 N x K.

    Raises:
        SettingsError: If a list has another length or a weight that is not positive.
    """
    if setting == "none":
        return None
    if setting == "balanced":
        found = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(classes))
        return [float(len(labels) / (len(classes) * n)) for n in found]
    try:
        weights = [float(w) for w in setting]
    except (TypeError, ValueError):
        weights = []
    if len(weights) != len(classes) or not all(0 < w < math.inf for w in weights):
        raise SettingsError(
            f"class_weights={setting}: expected none, balanced or {len(classes)} numbers above 0, for "
            f"{', '.join(classes)}"
        )
    return weights


def is_block(images: np.ndarray | list[Path]) -> bool:
    """Whether the images are one array in memory rather than one by one."""
    return isinstance(images, np.ndarray) and images.dtype != object


def read_entries(entries: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Split:
    """Split of dictionaries with `image` (path) and `label`, see `_label_files.class_index`."""
    paths = [Path(str(entry["image"])) for entry in entries]
    labels = np.asarray([class_index(entry["label"], classes) for entry in entries], dtype=np.int64)
    return Split(paths, labels, [str(p) for p in paths])


def check_classes(data: ImageData) -> None:
    """Refuse data that cannot be trained or validated on.

    Raises:
        ValueError: If there are fewer than two classes, or one has no image in training or validation.
    """
    problems = []
    if len(data.classes) < 2:
        problems.append(f"there is only the class {data.classes[0]!r}, and a classifier needs two")
    for row in data.counts()[:-1]:
        # Training needs every class, and without one the AUC that chooses the epoch is undefined.
        problems += [f"class {row['class']!r} has no image in {s}" for s in ("train", "val") if row[s] == 0]
    if data.multi_label:
        for index, name in enumerate(data.classes):
            if data.splits["val"].labels[:, index].all():
                problems.append(f"label {name!r} is present in every image of val: its AUC is undefined")
    if problems:
        advice = "\n(tools/make_data_lists.py cuts splits that all have every class)"
        raise ValueError(listed(data.source, problems) + advice)


def with_budget(
    data: ImageData, *, label_fraction: float | None = None, labels_per_class: int | None = None, seed: int = 0
) -> ImageData:
    """The same data with labels of some training images only; the other images are left out."""
    if label_fraction is None and labels_per_class is None:
        return data
    train = data.splits["train"]
    kept = labelled_subset(
        train.labels,
        label_fraction=label_fraction,
        labels_per_class=labels_per_class,
        seed=seed,
        class_names=data.classes,
    )
    splits = {**data.splits, "train": train.take(np.asarray(kept))}
    return ImageData(data.name, data.task, data.classes, splits, data.source, len(train) - len(kept), data.notes)


def demo_seed(split: str, seed: int) -> int:
    """Seed of the demo's pictures of a split.

    Those of validation (1000) and test (2000) do not depend on the seed of the run, so that figures stay comparable;
    no seed of a run gives the same pictures for training.
    """
    index = SPLITS.index(split)
    return 1000 * index if index else seed if seed < 1000 else seed + 2000
