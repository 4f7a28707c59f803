"""Data sets: the built-in demo, MedMNIST files, and lists of image files; kept as uint8 at their stored size."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ._common import SettingsError
from .datalists import Entries, read_datalist
from .demo_data import DEMO_CLASSES, make_demo_images
from .medmnist_files import MEDMNIST_FLAGS, find_npz, medmnist_info, read_npz
from .subsets import labelled_subset
from .transforms import Preprocess, load_image

SPLITS = ("train", "val", "test")
MULTI_LABEL = "multi-label, binary-class"

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

    def fingerprint(self) -> str:
        """Checksum over every image as stored (or, uncached, its path), label and split."""
        digest = hashlib.sha256()
        for name, part in self.splits.items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(part.labels).tobytes())
            for image in [part.images] if _is_block(part.images) else part.images:
                digest.update(image.tobytes() if isinstance(image, np.ndarray) else str(image).encode())
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
        weights = [float(w) for w in setting]
        if len(weights) != len(self.classes) or min(weights) <= 0:
            raise SettingsError(
                f"class_weights={weights}: expected {len(self.classes)} numbers above 0, for {', '.join(self.classes)}"
            )
        return weights


def _is_block(images: np.ndarray | list[Path]) -> bool:
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

    Raises:
        SettingsError: If the settings do not fit together.
        ValueError: If the data have problems; all of them in one message.
    """
    if dataset != "datalist" and datalist is not None:
        raise SettingsError(f"datalist={datalist!r} is only read with dataset='datalist', and dataset is {dataset!r}")
    if dataset == "demo":
        data = _demo(demo_size, demo_counts or {"train": 320, "val": 160, "test": 320}, seed)
    elif dataset == "datalist":
        if datalist is None:
            raise SettingsError("dataset='datalist' needs datalist: the path of a MONAI datalist (.json) or a .csv")
        data = _from_list(Path(datalist), dataset_dir, num_workers, cache)
    elif dataset in MEDMNIST_FLAGS or Path(dataset).suffix == ".npz":
        data = _from_npz(dataset, dataset_dir)
    else:
        data = _from_list(_list_at(dataset), dataset_dir, num_workers, cache)
    if label_fraction is not None or labels_per_class is not None:
        kept = labelled_subset(
            data.splits["train"].labels, label_fraction=label_fraction, labels_per_class=labels_per_class, seed=seed,
            class_names=data.classes,
        )
        left_out = len(data.splits["train"]) - len(kept)
        splits = {**data.splits, "train": data.splits["train"].take(np.asarray(kept))}
        data = ImageData(data.name, data.task, data.classes, splits, data.source, left_out, data.notes)
    _check_classes(data)
    return data


def _demo(size: int, counts: Mapping[str, int], seed: int) -> ImageData:
    splits = {}
    for index, split in enumerate(SPLITS):
        # The pictures of validation and test do not depend on the seed of the run: figures stay comparable.
        images, labels = make_demo_images(counts[split], size=size, seed=1000 * index + (seed if index == 0 else 0))
        splits[split] = Split(images, labels, [f"demo/{split}/{i:04d}" for i in range(len(labels))])
    source = "built-in synthetic demo pictures, of no clinical meaning"
    return ImageData("demo", "multi-class", list(DEMO_CLASSES), splits, source)


def _from_npz(dataset: str, dataset_dir: str | None) -> ImageData:
    path = find_npz(dataset, dataset_dir)
    arrays, classes = read_npz(path)
    info = medmnist_info(dataset, path)
    splits = {}
    for split in SPLITS:
        images, labels = arrays[split]
        files = [f"{path.stem}/{split}/{i:05d}" for i in range(len(labels))]
        splits[split] = Split(images, labels, files)
    labels = splits["train"].labels
    if info is not None:
        task, classes = info["task"], list(info["label"].values())
    else:
        num_classes = labels.shape[1] if labels.ndim == 2 else max(int(s.labels.max()) for s in splits.values()) + 1
        task = MULTI_LABEL if labels.ndim == 2 else "binary-class" if num_classes == 2 else "multi-class"
        classes = classes or [f"class {i}" for i in range(num_classes)]
    return ImageData(path.stem, task, classes, splits, f"{path.name} (MedMNIST layout)")


def _list_at(dataset: str) -> Path:
    path = Path(dataset)
    if path.is_dir():
        if not (path / "images.csv").is_file():
            raise SettingsError(
                f"dataset={dataset!r} is a folder without images.csv: make a list of its files with "
                "tools/make_data_lists.py and give it with --dataset datalist --datalist LIST --dataset_dir FOLDER"
            )
        return path / "images.csv"
    if path.suffix in (".csv", ".json"):
        return path
    raise SettingsError(
        f"dataset={dataset!r} is unknown: expected 'demo', 'datalist', a MedMNIST flag ({', '.join(MEDMNIST_FLAGS)}), "
        "or the path of a .npz, .csv or .json file or of a folder with images.csv"
    )


def _from_list(path: Path, dataset_dir: str | None, num_workers: int, cache: bool) -> ImageData:
    entries = read_datalist(path, Path(dataset_dir) if dataset_dir else None, num_workers=num_workers)
    splits = {name: _read_split(entries, name, num_workers, cache) for name in SPLITS}
    name = path.parent.name if path.name == "images.csv" else path.stem
    return ImageData(name, entries.task, entries.classes, splits, str(path), entries.unlabelled, entries.notes)


def _read_split(entries: Entries, name: str, num_workers: int, cache: bool) -> Split:
    paths, labels = entries.paths[name], entries.labels[name]
    files = entries.files[name]
    if not cache:
        return Split(paths, labels, files)
    return Split(read_images(paths, num_workers), labels, files)


def read_images(paths: Sequence[Path], num_workers: int = 0) -> np.ndarray:
    """Read files as uint8 into one array N x H x W x 3, or N objects (H x W x 3 each) if their sizes differ."""
    first = load_image(paths[0]).permute(1, 2, 0).numpy()
    array = np.empty((len(paths), *first.shape), dtype=np.uint8)
    others: dict[int, np.ndarray] = {}

    def read(index: int) -> None:
        image = load_image(paths[index]).permute(1, 2, 0).numpy()
        if image.shape == first.shape:
            array[index] = image
        else:
            others[index] = image

    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        list(pool.map(read, range(len(paths))))
    if not others:
        return array
    mixed = np.empty(len(paths), dtype=object)
    for index in range(len(paths)):
        mixed[index] = others[index] if index in others else array[index].copy()
    return mixed


def _check_classes(data: ImageData) -> None:
    problems = []
    for row in data.counts()[:-1]:
        # Training needs every class, and without one the AUC that chooses the epoch is undefined.
        problems += [f"class {row['class']!r} has no image in {s}" for s in ("train", "val") if row[s] == 0]
    if data.multi_label:
        for index, name in enumerate(data.classes):
            if data.splits["val"].labels[:, index].all():
                problems.append(f"label {name!r} is present in every image of val: its AUC is undefined")
    if problems:
        raise ValueError(f"{data.source}: " + "; ".join(problems))


class ImageSet(Dataset):
    """Batches of stored images by a list of positions: `image` uint8 B x C x H x W (or float32 at `image_size` where
    the stored sizes differ), `label`.

    Args:
        data: A `Split`, or a list of dictionaries with `image` (path) and `label` (index), as MONAI's datalists.
        preprocess: Brings images of different sizes to one size.
    """

    def __init__(self, data: Split | Sequence[Mapping[str, Any]], preprocess: Preprocess) -> None:
        if not isinstance(data, Split):
            paths = [Path(str(item["image"])) for item in data]
            labels = np.asarray([item["label"] for item in data])
            if not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(f"label {data[0]['label']!r} of {paths[0]}: expected the index of the class")
            data = Split(paths, labels.astype(np.int64), [str(p) for p in paths])
        self.data = data
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: Sequence[int] | int) -> dict[str, torch.Tensor]:
        positions = np.atleast_1d(np.asarray(indices))
        label = torch.from_numpy(self.data.labels[positions])
        return {"image": self.images(positions), "label": label}

    def images(self, positions: np.ndarray) -> torch.Tensor:
        """Images at these positions, B x C x H x W in 0..255."""
        stored = self.data.images
        if isinstance(stored, np.ndarray) and _is_block(stored):
            batch = torch.from_numpy(stored[positions])
            return batch.unsqueeze(1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
        single = [self.image(int(i)) for i in positions]
        return torch.stack([self.preprocess.resize(torch.from_numpy(i).permute(2, 0, 1)) for i in single])

    def image(self, position: int) -> np.ndarray:
        """One image as stored, uint8 H x W (x 3)."""
        stored = self.data.images[position]
        return load_image(stored).permute(1, 2, 0).numpy() if isinstance(stored, Path) else stored


class EpochBatches(Sampler[list[int]]):
    """Positions of every batch of an epoch, this rank's share; order and share depend on seed and epoch alone.

    A last batch of one image is joined to the one before: batch norm cannot normalise a single value.

    Args:
        length: Number of images.
        batch_size: Images per batch and rank.
        seed: Of the order.
        shuffle: Whether each epoch has its own order; otherwise that of the data.
        rank: Of this process, among `num_ranks`.
        num_ranks: Number of processes.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int = 0, shuffle: bool = True, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.num_ranks = num_ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def _share(self) -> int:
        # In training every rank takes the same number of steps, or the last gradient exchange waits for ever.
        return self.length // self.num_ranks if self.shuffle else len(range(self.rank, self.length, self.num_ranks))

    def __len__(self) -> int:
        full, rest = divmod(self._share(), self.batch_size)
        return max(full + (rest > 1 or (rest == 1 and not self.shuffle)), 1)

    def __iter__(self):
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        mine = order[self.rank :: self.num_ranks][: self._share()]
        count = len(self)
        for index in range(count):
            end = len(mine) if index == count - 1 else (index + 1) * self.batch_size
            yield mine[index * self.batch_size : end].tolist()
