"""Where a data set of images with classes comes from: a list, another program, or what a bundle alone knows."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from label_efficient.data.class_lists import MULTI_LABEL, read_datalist
from label_efficient.data.image_copies import check_copies
from label_efficient.data.image_data import ImageData, Split, check_classes, read_entries
from label_efficient.data.image_files import UnreadableError, read_images
from label_efficient.data.image_hashes import hash_images
from label_efficient.data.images import MOST_PIXELS
from label_efficient.data.label_files import split_by_class
from label_efficient.data.subsets import labelled_subset
from label_efficient.files import read_json
from label_efficient.monai_bridge import handed_over
from label_efficient.settings import SettingsError


def load_image_data(
    dataset: str,
    own: Callable[[], ImageData],
    *,
    known: Sequence[str] = ("demo", "datalist"),
    others: str = "'demo', 'datalist'",
    several_labels: bool = True,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    label_fraction: float | None = None,
    labels_per_class: int | None = None,
    seed: int = 0,
    num_workers: int = 0,
    cache: bool = True,
    max_pixels: int = MOST_PIXELS,
    copies: str = "error",
    released: str | None = None,
) -> ImageData:
    """Load a data set and check it as a whole.

    `own` loads one of the `known` data sets, such as the demo; `others` and lists are as of `list_path`, label budgets
    as of `subsets.labelled_subset`. Paths of a list are relative to `dataset_dir`, by default its folder; `cache` keeps
    its images in memory, `max_pixels` is as of `images.read_image`, `copies` as of `image_copies.check_copies`.
    `several_labels` says whether the bundle can learn these. `released`, the `model.json` of the released weights, has
    the classes where another program hands over images for training instead.

    Raises:
        SettingsError: If the settings do not fit together.
        ValueError: If the data have problems; all of them in one message.
    """
    if released is not None and (lists := handed_over()) is not None:
        return _handed_over_data(lists, Path(released), seed)
    path = list_path(dataset, datalist, known, others)
    if path is None and not cache:
        raise SettingsError(f"cache=False has no effect with dataset={dataset!r}, which is in memory: it is for a list")
    hashed = copies != "ignore"
    data = own() if path is None else _data_of_list(path, dataset_dir, num_workers, cache, hashed, max_pixels)
    if path is None and hashed:
        splits = {
            name: replace(part, hashes=hash_images(map(part.picture, range(len(part)))))
            for name, part in data.splits.items()
        }
        data = replace(data, splits=splits)
    if data.multi_label and not several_labels:
        raise ValueError(
            f"{data.source}: its images have lists of labels, and this bundle learns one class per image: give the "
            "index or the name of the class, or use the lsanet bundle"
        )
    if dataset != "demo":
        about: Any = {"published": data.published, "num_workers": num_workers}
        found, notes = check_copies(data.compared(), data.source, copies, **about)
        data = replace(data, copies=found, notes=[*notes, *data.notes])
    if label_fraction is not None or labels_per_class is not None:
        train = data.splits["train"]
        kept = labelled_subset(train.labels, label_fraction, labels_per_class, seed, data.classes)
        images = train.images[kept] if isinstance(train.images, np.ndarray) else [train.images[i] for i in kept]
        hashes = None if train.hashes is None else train.hashes[kept]
        labelled = Split(images, train.labels[kept], [train.files[i] for i in kept], hashes)
        data = replace(data, splits={**data.splits, "train": labelled}, unlabelled=len(train) - len(kept))
    check_classes(data.classes, data.splits, data.source)
    return data


def list_path(
    dataset: str,
    datalist: str | None,
    known: Sequence[str] = ("demo", "datalist"),
    others: str = "'demo', 'datalist'",
) -> Path | None:
    """Path of the list that the settings name, or None where they name a data set of the bundle's own.

    `dataset` is "datalist", whose list `datalist` is; one of the `known` (`others` in words, for the error); or the
    path of a list (`.json`, `.csv`) or of a folder with an `images.csv`.

    Raises:
        SettingsError: If the settings name none, or two.
    """
    if dataset == "datalist":
        if datalist is None:
            raise SettingsError("dataset='datalist' needs datalist: the path of a list (.json or .csv)")
        return Path(datalist)
    if datalist is not None:
        raise SettingsError(f"datalist={datalist!r} is only read with dataset='datalist', and dataset is {dataset!r}")
    if dataset in known:
        return None
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
        f"dataset={dataset!r} is neither a file or folder nor a known name: {hint} {others}, or the path of a list "
        "(.json or .csv) or of a folder with images.csv; tools/make_data_lists.py makes a list of your own images"
    )


def _handed_over_data(lists: Mapping[str, Sequence[Mapping[str, Any]]], released: Path, seed: int) -> ImageData:
    """The lists of another program, with the classes of the released weights; validation stands in for a test."""
    info = read_json(released, "the description of the released weights, with the classes of the labels")
    if info["task"] == MULTI_LABEL:
        raise ValueError(f"{released}: its images can have several labels; label files are read with one class each")
    parts, notes = split_by_class(lists, info["classes"], seed)
    splits = {name: read_entries(entries, info["classes"]) for name, entries in parts.items()}
    splits["test"] = splits["val"]
    source = "images and labels handed over by another program"
    notes.append("there are no test images: the figures of test are those of validation again, and optimistic")
    return ImageData("handed-over", info["task"], info["classes"], splits, source, notes=notes)


def _data_of_list(
    path: Path, dataset_dir: str | None, num_workers: int, cache: bool, hashed: bool, max_pixels: int
) -> ImageData:
    """Read and check a list (see `class_lists.read_datalist`) and, to keep or to check them, all its images."""
    found = read_datalist(path, Path(dataset_dir) if dataset_dir else None)
    problems: list[str] = []
    splits = {}
    for name, entries in found.sections.items():
        labels = np.asarray([entry.label for entry in entries], dtype=np.int64)
        try:  # uncached files, too: an hour later is too late to learn that one is damaged
            images, hashes = read_images(
                [entry.image for entry in entries], num_workers, cache=cache, hashed=hashed, max_pixels=max_pixels
            )
            splits[name] = Split(images, labels, [entry.file for entry in entries], hashes)
        except UnreadableError as error:
            problems += error.problems
    if problems:
        raise UnreadableError(path, problems)
    name = path.parent.name if path.name == "images.csv" else path.stem
    return ImageData(name, found.task, found.classes, splits, str(path), found.unlabelled)
