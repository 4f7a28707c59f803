"""Data sets: the built-in demo and lists of chest X-rays; kept as uint8 at the network's size."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.image_data import class_weights
from label_efficient.data.image_files import UnreadableError
from label_efficient.data.list_checks import Entry
from label_efficient.data.mask_lists import SECTIONS, read_datalist
from label_efficient.files import read_json
from label_efficient.monai_bridge import handed_over
from label_efficient.settings import SettingsError

from .budget import apply_budgets, reuse_labelled_images
from .demo_data import DEMO_CLASSES, make_demo_images
from .losses import UNKNOWN
from .network import METHODS
from .parts import Part, read_part
from .transforms import Preprocess

logger = logging.getLogger(__name__)

_UNLABELLED = "unlabelled images for "
DEMO_COUNTS = {"train": 400, "val": 100, "test": 200, "cross_domain": 100}


@dataclass(frozen=True)
class ChestData:
    """A data set: its sections by name, what its classes are, and the streams that training draws from.

    Attributes:
        name: For tables and folder names.
        classes: Names of the classes, in the order of the network's outputs; empty without any.
        splits: `mask_lists.SECTIONS` to their parts.
        streams: For each stream of training (`streams.STREAMS`) the section and the positions in it.
        source: Where the data come from, for people.
        notes: Remarks for people.
        masks_alone: Whether another program has handed over images with masks, and nothing to learn classes from.
    """

    name: str
    classes: list[str]
    splits: dict[str, Part]
    streams: dict[str, tuple[str, np.ndarray]]
    source: str
    notes: list[str] = field(default_factory=list)
    task: str = "classification and segmentation"
    masks_alone: bool = False

    def counts(self) -> list[dict[str, Any]]:
        """Images by class and with masks (rows) and section (columns), then the length of each stream."""
        names = [name for name in SECTIONS if len(self.splits[name])]
        rows: list[dict[str, Any]] = []
        for index, label in enumerate(self.classes):
            row = {name: int((self.splits[name].labels == index).sum()) for name in names}
            rows.append({"": label, **row})
        rows.append({"": "with a mask", **{name: len(self.splits[name].masked) for name in names}})
        rows.append({"": "images", **{name: len(self.splits[name]) for name in names}})
        return rows

    def remarks(self) -> list[str]:
        """The streams of training and the images in each."""
        found = ", ".join(f"{name} {len(positions)}" for name, (_, positions) in self.streams.items())
        return [f"streams of training, each image drawn in turn: {found}"]

    def fingerprint(self) -> str:
        """Checksum over every image and mask at the network's size, every label and stream."""
        digest = hashlib.sha256()
        for name, part in self.splits.items():
            digest.update(name.encode())
            for array in (part.images, part.labels, part.masks, part.mask_rows):
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        for name, (section, positions) in self.streams.items():
            digest.update(f"{name} {section}".encode())
            digest.update(np.ascontiguousarray(positions, dtype=np.int64).view(np.uint8).data)
        return digest.hexdigest()

    def class_weights(self, setting: str | Sequence[float]) -> list[float] | None:
        """Weights of the classes in the cross-entropy, see `image_data.class_weights`; None without classes."""
        train = self.splits["train"]
        return class_weights(setting, self.classes, train.labels[train.labelled]) if self.classes else None


def load_data(
    dataset: str,
    *,
    method: str,
    preprocess: Preprocess,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    class_labels: int | None = None,
    mask_labels: int | None = None,
    reuse_labelled: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    demo_counts: Mapping[str, int] | None = None,
    released: str | None = None,
) -> ChestData:
    """Load a data set, check it as a whole, and divide it into the streams that the method draws from.

    Args:
        dataset: "demo"; "datalist"; or the path of a list (`.json`, `.csv`).
        method: One of `network.METHODS`.
        preprocess: Brings the pictures to the network's size.
        dataset_dir: What the paths of a list are relative to; by default the list's folder.
        datalist: The list, for "datalist".
        class_labels: How many training images keep their class; the others become unlabelled. None: all.
        mask_labels: The same of the masks.
        reuse_labelled: Whether the labelled images are in the unlabelled streams too, without their labels.
        seed: Of the budgets and the demo.
        num_workers: Threads that read files.
        demo_counts: Number of demo pictures by section.
        released: `model.json` of the released weights: what the classes are where another program hands images with
            masks over for training, instead of the data set.

    Raises:
        SettingsError: If the settings do not fit together, or the data lack what the method needs.
        ValueError: If the data have problems; all of them in one message.
    """
    if (lists := handed_over()) is not None:
        classes = read_json(str(released), "the released weights")["classes"] if METHODS[method].classifies else []
        return _from_lists(lists, classes, preprocess, num_workers)
    if dataset != "datalist" and datalist is not None:
        raise SettingsError(f"datalist={datalist!r} is only read with dataset='datalist', and dataset is {dataset!r}")
    if dataset == "demo":
        name, source, classes = "demo", "built-in synthetic demo", list(DEMO_CLASSES)
        splits = _demo(preprocess, demo_counts or DEMO_COUNTS, seed)
    else:
        path = _list_path(dataset, datalist)
        name, source = path.stem, str(path)
        classes, splits = _read_list(path, dataset_dir, preprocess, num_workers)
    splits = apply_budgets(splits, class_labels, mask_labels, seed, len(classes))
    if reuse_labelled:
        splits = reuse_labelled_images(splits)
    streams = _streams(splits, method, source)
    data = ChestData(name, classes, splits, streams, source)
    _check_classes(data, method)
    return data


def _from_lists(
    lists: Mapping[str, Sequence[Mapping[str, Any]]], classes: list[str], preprocess: Preprocess, num_workers: int
) -> ChestData:
    """Images with masks that another program, such as MONAI Label, hands over; validation stands in for a test."""
    problems: list[str] = []
    splits = {}
    for name in SECTIONS:
        items = lists.get("val" if name == "test" else name, [])
        entries = [
            Entry(Path(i["image"]), i["image"], masks=(Path(i["label"]),), at=f"{name}[{n}]")
            for n, i in enumerate(items)
        ]
        splits[name] = read_part(entries, preprocess, num_workers, problems)
    source = "images handed over by another program"
    if problems:
        raise UnreadableError(source, problems)
    notes = ["no test images were handed over: validation stands in for them, and their figures are too good"]
    if classes:
        notes.append("masks alone: the decoder is trained, encoder and classifier stay those of the released weights")
    streams = _streams(splits, "unet", source)
    return ChestData("handed-over", classes, splits, streams, source, notes, masks_alone=True)


def _list_path(dataset: str, datalist: str | None) -> Path:
    if dataset == "datalist":
        if datalist is None:
            raise SettingsError("dataset='datalist' needs datalist: the path of a list (.json or .csv)")
        return Path(datalist)
    if Path(dataset).suffix.lower() in (".json", ".csv"):
        return Path(dataset)
    raise SettingsError(
        f"dataset={dataset!r}: expected 'demo', 'datalist', or the path of a list (.json or .csv); "
        "tools/make_data_lists.py chest makes one from the publishers' folders or your own"
    )


def _demo(preprocess: Preprocess, counts: Mapping[str, int], seed: int) -> dict[str, Part]:
    splits = {}
    for index, section in enumerate(SECTIONS):
        # Pictures of validation and tests do not depend on the seed of the run, so that figures stay comparable; no
        # seed of a run may give the same pictures for training.
        own_seed = 1000 * index if index else seed if seed < 1000 else seed + 5000
        count = counts.get(section, 0)
        images, labels, masks = make_demo_images(
            count, size=preprocess.image_size, seed=own_seed, shift=section == "cross_domain"
        )
        names = [f"demo/{section}/{i:04d}.png" for i in range(count)]
        entries = [Entry(Path(n), n, label=int(k), source="demo") for n, k in zip(names, labels, strict=True)]
        splits[section] = Part(images, labels, masks, np.arange(count), entries, np.full(count, UNKNOWN))
    return splits


def _read_list(
    path: Path, dataset_dir: str | None, preprocess: Preprocess, num_workers: int
) -> tuple[list[str], dict[str, Part]]:
    if dataset_dir is not None and not Path(dataset_dir).is_dir():
        raise SettingsError(f"dataset_dir={dataset_dir!r}: no such folder")
    listed = read_datalist(path, Path(dataset_dir) if dataset_dir else None, num_workers=num_workers)
    problems: list[str] = []
    splits = {name: read_part(listed.sections[name], preprocess, num_workers, problems) for name in SECTIONS}
    if problems:
        raise UnreadableError(path, problems)
    return listed.classes, splits


def _streams(splits: Mapping[str, Part], method: str, source: str) -> dict[str, tuple[str, np.ndarray]]:
    """The streams of a method, each a section and positions in it; an empty one is an error, never a silent zero."""
    parts = METHODS[method]
    train, unlabelled = splits["train"], splits["unlabelled"]

    def of_task(task: str) -> np.ndarray:
        return np.flatnonzero([task in entry.tasks for entry in unlabelled.entries])

    wanted: list[tuple[str, bool, str, np.ndarray, str]] = [
        ("mask_labelled", parts.segments, "train", train.masked, "training images with a mask"),
        ("class_labelled", parts.classifies, "train", train.labelled, "training images with a label"),
        (
            "mask_unlabelled",
            parts.mask_consistency,
            "unlabelled",
            of_task("segmentation"),
            _UNLABELLED + "segmentation",
        ),
        (
            "class_unlabelled",
            parts.pseudo_labels,
            "unlabelled",
            of_task("classification"),
            _UNLABELLED + "classification",
        ),
    ]
    streams = {name: (section, positions) for name, needed, section, positions, _ in wanted if needed}
    problems = [f"there are no {what}" for _, needed, _, positions, what in wanted if needed and not len(positions)]
    if problems:
        only_unlabelled = all(_UNLABELLED in problem for problem in problems)
        hint = "; reuse_labelled=true lets the labelled images stand in for unlabelled ones" if only_unlabelled else ""
        raise SettingsError(
            f"method={method!r} cannot be trained on {source}: {'; '.join(problems)}. {_fitting_methods(splits)}{hint}"
        )
    return streams


def _fitting_methods(splits: Mapping[str, Part]) -> str:
    tasks = {task for entry in splits["unlabelled"].entries for task in entry.tasks}
    fitting = [
        name
        for name, method in METHODS.items()
        if (not method.segments or len(splits["train"].masked))
        and (not method.classifies or len(splits["train"].labelled))
        and (not method.mask_consistency or "segmentation" in tasks)
        and (not method.pseudo_labels or "classification" in tasks)
    ]
    return f"Methods that fit these data: {', '.join(fitting)}" if fitting else "No method fits these data"


def _check_classes(data: ChestData, method: str) -> None:
    if not METHODS[method].classifies:
        return
    problems = []
    if len(data.classes) < 2:
        problems.append(f"there is only the class {data.classes[0]!r}, and a classifier needs two")
    for index, name in enumerate(data.classes):
        for section in ("train", "val"):
            if not (data.splits[section].labels == index).any():
                problems.append(f"class {name!r} has no image in {section}")
    if problems:
        raise ValueError(f"{data.source}: {'; '.join(problems)}")
