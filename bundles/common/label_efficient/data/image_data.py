"""Data sets of images with classes: their splits, counts and checksum; from lists, or handed over."""

import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.class_lists import MULTI_LABEL, SPLITS, read_datalist
from label_efficient.data.image_files import UnreadableError, for_all_images, read_images
from label_efficient.data.label_files import class_index
from label_efficient.data.subsets import labelled_subset
from label_efficient.data.tables import listed
from label_efficient.files import read_json
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
        """Weights of the classes in the cross-entropy: None, inverse frequency with mean 1 over images, or given.

        Raises:
            SettingsError: If a list has another length or a weight that is not positive.
        """
        if setting == "none":
            return None
        if setting == "balanced":
            labels = self.splits["train"].labels
            found = labels.sum(axis=0) if self.multi_label else np.bincount(labels, minlength=len(self.classes))
            return [float(len(labels) / (len(self.classes) * n)) for n in found]
        try:
            weights = [float(w) for w in setting]
        except (TypeError, ValueError):
            weights = []
        if len(weights) != len(self.classes) or not all(0 < w < math.inf for w in weights):
            raise SettingsError(
                f"class_weights={setting}: expected none, balanced or {len(self.classes)} numbers above 0, for "
                f"{', '.join(self.classes)}"
            )
        return weights


def is_block(images: np.ndarray | list[Path]) -> bool:
    """Whether the images are one array in memory rather than one by one."""
    return isinstance(images, np.ndarray) and images.dtype != object


def list_path(dataset: str, datalist: str | None, known: Sequence[str], others: str) -> Path:
    """Path of the list that the settings name.

    Args:
        dataset: "datalist", the path of a list (`.json`, `.csv`), or a folder with an `images.csv`.
        datalist: The list, for "datalist".
        known: Names that `dataset` can have beside, for a hint where it is misspelt.
        others: The same in words, for the error.

    Raises:
        SettingsError: If the settings name none.
    """
    if dataset == "datalist":
        if datalist is None:
            raise SettingsError("dataset='datalist' needs datalist: the path of a MONAI datalist (.json) or a .csv")
        return Path(datalist)
    path = Path(dataset)
    if path.is_dir():
        if not (path / "images.csv").is_file():
            raise SettingsError(
                f"dataset={dataset!r} is a folder without images.csv: make a list of its files with "
                "tools/make_data_lists.py and give it with --dataset datalist --datalist LIST --dataset_dir FOLDER"
            )
        return path / "images.csv"
    if path.suffix.lower() in (".csv", ".json"):
        return path
    near = difflib.get_close_matches(dataset.lower(), known, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]!r}? Expected" if near else "expected"
    raise SettingsError(
        f"dataset={dataset!r} is neither a file or folder nor a known name: {hint} {others}, or the path of a .csv or "
        ".json file or of a folder with images.csv"
    )


def handed_over_data(lists: Mapping[str, Sequence[Mapping[str, Any]]], released: Path) -> ImageData:
    """The lists of images that another program hands over for training, with the classes of the released weights.

    Args:
        lists: "train" and "val", see `_label_files.handed_over`. Validation stands in for a test.
        released: `model.json` of the released weights.
    """
    info = read_json(released, "the description of the released weights, with the classes of the labels")
    if info["task"] == MULTI_LABEL:
        raise ValueError(f"{released}: its images can have several labels; label files are read with one class each")
    splits = {name: read_entries(entries, info["classes"]) for name, entries in lists.items()}
    splits["test"] = splits["val"]
    data = ImageData(
        "handed-over",
        info["task"],
        info["classes"],
        splits,
        "images and labels handed over by another program",
        notes=["there are no test images: the figures of test are those of validation again, and optimistic"],
    )
    check_classes(data)
    return data


def read_entries(entries: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Split:
    """Split of dictionaries with `image` (path) and `label`, see `_label_files.class_index`."""
    paths = [Path(str(entry["image"])) for entry in entries]
    labels = np.asarray([class_index(entry["label"], classes) for entry in entries], dtype=np.int64)
    return Split(paths, labels, [str(p) for p in paths])


def data_of_list(path: Path, dataset_dir: str | None, num_workers: int, cache: bool) -> ImageData:
    """Read and check a list (see `_class_lists.read_datalist`) and, to keep or to check them, all its images.

    Raises:
        ValueError: With all problems of the list, or all images that cannot be read.
    """
    found = read_datalist(path, Path(dataset_dir) if dataset_dir else None, num_workers=num_workers)
    problems: list[str] = []
    splits = {}
    for name, entries in found.sections.items():
        paths = [entry.image for entry in entries]
        images: np.ndarray | list[Path] = paths
        try:
            if cache:
                images = read_images(paths, num_workers)
            else:
                # An hour later is too late to learn that a file is damaged.
                for_all_images(paths, lambda index, image: None, num_workers)
        except UnreadableError as error:
            problems += error.problems
            continue
        labels = np.asarray([entry.label for entry in entries], dtype=np.int64)
        splits[name] = Split(images, labels, [entry.file for entry in entries])
    if problems:
        raise UnreadableError(path, problems)
    name = path.parent.name if path.name == "images.csv" else path.stem
    return ImageData(name, found.task, found.classes, splits, str(path), found.unlabelled)


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
