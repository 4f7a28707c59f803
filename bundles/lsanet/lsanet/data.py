"""Data sets: the built-in demo, MedMNIST files, and lists of image files; kept as uint8 at their stored size."""

import difflib
import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ._common import SettingsError, read_json
from ._image_files import UnreadableError, for_all_images, listed, read_images
from ._label_files import class_index, handed_over
from .datalists import MULTI_LABEL, read_datalist
from .demo_data import DEMO_CLASSES, make_demo_images
from .medmnist_files import MEDMNIST_FLAGS, find_npz, medmnist_info, official_flag, read_npz
from .subsets import labelled_subset

SPLITS = ("train", "val", "test")

logger = logging.getLogger(__name__)


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
    demo_size: int = 64,
    demo_counts: Mapping[str, int] | None = None,
    released: str | None = None,
) -> ImageData:
    """Load a data set and check it as a whole.

    Args:
        dataset: "demo"; a 2-D MedMNIST flag such as "bloodmnist"; "datalist"; or the path of a MedMNIST-layout
            `.npz`, of a list (`.json`, `.csv`), or of a folder with an `images.csv`.
        dataset_dir: Where MedMNIST files lie, or what the paths of a list are relative to.
        datalist: The list, for "datalist".
        label_fraction: Share of the training labels to keep, stratified.
        labels_per_class: Or their number per class.
        seed: Of the subset and the demo.
        num_workers: Threads that read image files.
        cache: Whether the images of a list are read once and kept in memory.
        demo_size: Pixels a side of the demo's pictures.
        demo_counts: Number of demo pictures by split.
        released: `model.json` of the released weights: what the classes are where another program hands
            images over for training, instead of the data set.

    Raises:
        SettingsError: If the settings do not fit together.
        ValueError: If the data have problems; all of them in one message.
    """
    if released is not None and (lists := handed_over()) is not None:
        return _from_lists(lists, Path(released))
    if dataset != "datalist" and datalist is not None:
        raise SettingsError(f"datalist={datalist!r} is only read with dataset='datalist', and dataset is {dataset!r}")
    if dataset == "demo":
        data = _demo(demo_size, demo_counts or {"train": 320, "val": 160, "test": 320}, seed)
    elif dataset == "datalist":
        if datalist is None:
            raise SettingsError("dataset='datalist' needs datalist: the path of a MONAI datalist (.json) or a .csv")
        data = _from_list(Path(datalist), dataset_dir, num_workers, cache)
    elif dataset in MEDMNIST_FLAGS or Path(dataset).suffix.lower() == ".npz":
        data = _from_npz(dataset, dataset_dir)
    else:
        data = _from_list(_list_at(dataset), dataset_dir, num_workers, cache)
    if label_fraction is not None or labels_per_class is not None:
        kept = labelled_subset(
            data.splits["train"].labels,
            label_fraction=label_fraction,
            labels_per_class=labels_per_class,
            seed=seed,
            class_names=data.classes,
        )
        left_out = len(data.splits["train"]) - len(kept)
        splits = {**data.splits, "train": data.splits["train"].take(np.asarray(kept))}
        data = ImageData(data.name, data.task, data.classes, splits, data.source, left_out, data.notes)
    _check_classes(data)
    if data.multi_label and all((part.labels.sum(axis=1) == 1).all() for part in data.splits.values()):
        data.notes.append(
            "every image has exactly one of the labels, and they are learned as independent yes or no: if the lists "
            "of 0 and 1 stand for classes that exclude each other, give the index of the class instead"
        )
    return data


def _demo(size: int, counts: Mapping[str, int], seed: int) -> ImageData:
    splits = {}
    for index, split in enumerate(SPLITS):
        # The pictures of validation (seed 1000) and test (2000) do not depend on the seed of the run, so that figures
        # stay comparable; no seed of a run may give the same pictures for training.
        own_seed = 1000 * index if index else seed if seed < 1000 else seed + 2000
        images, labels = make_demo_images(counts[split], size=size, seed=own_seed)
        splits[split] = Split(images, labels, [f"demo/{split}/{i:04d}" for i in range(len(labels))])
    source = "built-in synthetic demo pictures, of no clinical meaning"
    return ImageData("demo", "multi-class", list(DEMO_CLASSES), splits, source)


def _from_npz(dataset: str, dataset_dir: str | None) -> ImageData:
    path = find_npz(dataset, dataset_dir)
    flag = official_flag(dataset, path)
    arrays, classes = read_npz(path, official=flag is not None)
    splits = {}
    for split in SPLITS:
        images, labels = arrays[split]
        files = [f"{path.stem}/{split}/{i:05d}" for i in range(len(labels))]
        splits[split] = Split(images, labels, files)
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
    return ImageData(path.stem, task, classes, splits, f"{path.name} (MedMNIST layout)")


def _from_lists(lists: Mapping[str, Sequence[Mapping[str, Any]]], released: Path) -> ImageData:
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
    _check_classes(data)
    return data


def read_entries(entries: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Split:
    """Split of dictionaries with `image` (path) and `label`, see `label_files.class_index`."""
    paths = [Path(str(entry["image"])) for entry in entries]
    labels = np.asarray([class_index(entry["label"], classes) for entry in entries], dtype=np.int64)
    return Split(paths, labels, [str(p) for p in paths])


def _list_at(dataset: str) -> Path:
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
    names = ("demo", "datalist", *MEDMNIST_FLAGS)
    near = difflib.get_close_matches(dataset.lower(), names, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]!r}? Expected" if near and not dataset.lower().endswith("3d") else "expected"
    raise SettingsError(
        f"dataset={dataset!r} is neither a file or folder nor a known name: {hint} 'demo', 'datalist', a 2-D MedMNIST "
        f"flag ({', '.join(f for f in MEDMNIST_FLAGS if '_' not in f)}; 28 pixels, or with _64, _128 or _224), or the "
        "path of a .npz, .csv or .json file or of a folder with images.csv"
    )


def _from_list(path: Path, dataset_dir: str | None, num_workers: int, cache: bool) -> ImageData:
    entries = read_datalist(path, Path(dataset_dir) if dataset_dir else None, num_workers=num_workers)
    problems: list[str] = []
    splits = {}
    for name in SPLITS:
        paths = entries.paths[name]
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
        splits[name] = Split(images, entries.labels[name], entries.files[name])
    if problems:
        raise UnreadableError(path, problems)
    name = path.parent.name if path.name == "images.csv" else path.stem
    return ImageData(name, entries.task, entries.classes, splits, str(path), entries.unlabelled, entries.notes)


def _check_classes(data: ImageData) -> None:
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
