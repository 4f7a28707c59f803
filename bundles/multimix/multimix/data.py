"""Data sets: the built-in demo and lists of chest X-rays; kept as uint8 at the network's size."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.image_copies import Copy, check_copies
from label_efficient.data.image_data import check_classes, class_weights, count_classes, demo_seed
from label_efficient.data.image_files import UnreadableError
from label_efficient.data.image_hashes import hash_images
from label_efficient.data.image_sources import list_path
from label_efficient.data.images import MOST_PIXELS
from label_efficient.data.label_files import split_by_class
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
    """A data set: its sections by name, what its classes are, and the streams that training draws from."""

    name: str
    classes: list[str]  # in the order of the network's outputs; empty without any
    splits: dict[str, Part]  # by `mask_lists.SECTIONS`
    streams: dict[str, tuple[str, np.ndarray]]  # of `streams.STREAMS`: section, and positions in it
    source: str
    notes: list[str] = field(default_factory=list)
    task: str = "classification and segmentation"
    copies: list[Copy] = field(default_factory=list)
    masks_alone: bool = False  # another program has handed over images with masks, and no classes

    def counts(self) -> list[dict[str, Any]]:
        """Images by class and with masks (rows) and section (columns), then the length of each stream."""
        parts = {name: part for name, part in self.splits.items() if len(part)}
        return [
            *count_classes(self.classes, parts, heading=""),
            {"": "with a mask", **{name: len(part.masked) for name, part in parts.items()}},
            {"": "images", **{name: len(part) for name, part in parts.items()}},
        ]

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
        """See `image_data.class_weights`; None without classes."""
        train = self.splits["train"]
        return class_weights(setting, self.classes, train.labels[train.labelled]) if self.classes else None


def load_data(
    dataset: str,
    *,
    method: str,
    preprocess: Preprocess,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    copies: str = "error",
    class_labels: int | None = None,
    mask_labels: int | None = None,
    reuse_labelled: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    max_pixels: int = MOST_PIXELS,
    demo_counts: Mapping[str, int] | None = None,
    released: str | None = None,
) -> ChestData:
    """Load a data set, check it as a whole, and divide it into the streams that the method draws from.

    `dataset` is "demo", "datalist" (the list is `datalist`), or the path of a list (`.json`, `.csv`) or of a folder
    with an `images.csv`; the paths of a list are relative to `dataset_dir`, by default its folder. `released` is
    `model.json` of the released weights: what the classes are where another program hands images with masks over for
    training, instead of the data set. The other options are those of `settings.Training`.

    Raises:
        SettingsError: If the settings do not fit together, or the data lack what the method needs.
        ValueError: If the data have problems; all of them in one message.
    """
    if (lists := handed_over()) is not None:
        classes = read_json(str(released), "the released weights")["classes"] if METHODS[method].classifies else []
        return _from_lists(lists, classes, preprocess, num_workers, max_pixels, seed)
    path = list_path(dataset, datalist)
    if path is None:
        name, source, classes = "demo", "built-in synthetic demo", list(DEMO_CLASSES)
        splits = _demo(preprocess, demo_counts or DEMO_COUNTS, seed)
    else:
        name, source = path.stem, str(path)
        found = read_datalist(path, Path(dataset_dir) if dataset_dir else None)
        classes, splits = found.classes, _read_parts(found.sections, preprocess, num_workers, max_pixels, source)
    found_copies: list[Copy] = []
    notes: list[str] = []
    if path is not None:
        sections = {name: part.compared() for name, part in splits.items()}
        found_copies, notes = check_copies(sections, source, copies, num_workers=num_workers)
    splits = apply_budgets(splits, class_labels, mask_labels, seed, len(classes))
    if reuse_labelled:
        splits = reuse_labelled_images(splits)
    streams = _streams(splits, method, source)
    if METHODS[method].classifies:
        check_classes(classes, splits, source)
    return ChestData(name, classes, splits, streams, source, notes, copies=found_copies)


def _from_lists(
    lists: Mapping[str, Sequence[Mapping[str, Any]]],
    classes: list[str],
    preprocess: Preprocess,
    num_workers: int,
    max_pixels: int,
    seed: int,
) -> ChestData:
    """Images with masks that another program, such as MONAI Label, hands over; validation stands in for a test."""
    parts, notes = split_by_class(lists, [], seed)
    sections = {
        name: [
            Entry(Path(item["image"]), item["image"], masks=(Path(item["label"]),), at=f"{name}[{n}]")
            for n, item in enumerate(parts.get("val" if name == "test" else name, []))
        ]
        for name in SECTIONS
    }
    source = "images handed over by another program"
    splits = _read_parts(sections, preprocess, num_workers, max_pixels, source)
    notes.append("no test images were handed over: validation stands in for them, and their figures are too good")
    if classes:
        notes.append("masks alone: the decoder is trained, encoder and classifier stay those of the released weights")
    streams = _streams(splits, "unet", source)
    return ChestData("handed-over", classes, splits, streams, source, notes, masks_alone=True)


def _read_parts(
    sections: Mapping[str, list[Entry]], preprocess: Preprocess, num_workers: int, max_pixels: int, source: str
) -> dict[str, Part]:
    problems: list[str] = []
    splits = {name: read_part(sections[name], preprocess, num_workers, max_pixels, problems) for name in SECTIONS}
    if problems:
        raise UnreadableError(source, problems)
    return splits


def _demo(preprocess: Preprocess, counts: Mapping[str, int], seed: int) -> dict[str, Part]:
    splits = {}
    for index, section in enumerate(SECTIONS):
        count = counts.get(section, 0)
        images, labels, masks = make_demo_images(
            count, size=preprocess.image_size, seed=demo_seed(index, seed, 5000), shift=section == "cross_domain"
        )
        names = [f"demo/{section}/{i:04d}.png" for i in range(count)]
        entries = [Entry(Path(n), n, label=int(k), source="demo") for n, k in zip(names, labels, strict=True)]
        unknown = np.full(count, UNKNOWN)
        splits[section] = Part(images, labels, masks, np.arange(count), entries, unknown, hash_images(images))
    return splits


def _streams(splits: Mapping[str, Part], method: str, source: str) -> dict[str, tuple[str, np.ndarray]]:
    """The streams of a method, each a section and positions in it; an empty one is an error, never a silent zero."""
    train, unlabelled = splits["train"], splits["unlabelled"]
    masks, classes = (
        np.flatnonzero([task in entry.tasks for entry in unlabelled.entries])
        for task in ("segmentation", "classification")
    )
    there = {
        "mask_labelled": ("segments", "train", train.masked, "training images with a mask"),
        "class_labelled": ("classifies", "train", train.labelled, "training images with a label"),
        "mask_unlabelled": ("mask_consistency", "unlabelled", masks, _UNLABELLED + "segmentation"),
        "class_unlabelled": ("pseudo_labels", "unlabelled", classes, _UNLABELLED + "classification"),
    }
    wanted = {name: stream for name, stream in there.items() if getattr(METHODS[method], stream[0])}
    lacking = [what for _, _, positions, what in wanted.values() if not len(positions)]
    if not lacking:
        return {name: (section, positions) for name, (_, section, positions, _) in wanted.items()}
    fitting = [
        name
        for name, other in METHODS.items()
        if all(len(positions) or not getattr(other, part) for part, _, positions, _ in there.values())
    ]
    advice = f"Methods that fit these data: {', '.join(fitting)}" if fitting else "No method fits these data"
    if all(what.startswith(_UNLABELLED) for what in lacking):
        advice += "; reuse_labelled=true lets the labelled images stand in for unlabelled ones"
    found = "; ".join(f"there are no {what}" for what in lacking)
    raise SettingsError(f"method={method!r} cannot be trained on {source}: {found}. {advice}")
