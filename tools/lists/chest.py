"""One list of chest X-rays for multimix: images with classes, images with masks, label budgets, other hospitals."""

from __future__ import annotations

import argparse
import os
import shlex
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from label_efficient.data.images import ImageError, read_image
from label_efficient.data.list_checks import TASKS
from label_efficient.data.mask_files import MaskError, read_mask
from label_efficient.data.mask_lists import read_datalist
from label_efficient.data.subsets import choose_labelled
from label_efficient.files import name_of, path_of
from lists.building import aligned, check_classes, check_files, file_name, train_command, write_list
from lists.chest_layouts import ChestSource, read_classification, read_segmentation, read_unlabelled
from lists.splits import SECTIONS, Entry, ListError, Source, assign_splits

ALL_SECTIONS = (*SECTIONS, "cross_domain", "unlabelled")
TEST_SHARE = 0.2


def make_chest_list(args: argparse.Namespace) -> None:
    """Run the command chest."""
    root = Path(os.path.abspath(args.root))
    sources = read_sources(args, root)
    check_sources(sources, args.max_pixels)
    data = build(sources, args)
    path = Path(args.output) if args.output else Path(args.output_dir) / default_name(sources, args)
    digests = {
        root / path_of(entry.image): entry.digest
        for source in sources.values()
        for entry in source.entries
        if entry.digest is not None
    }
    try:
        read_datalist(path, root, content=data, digests=digests)
    except ValueError as error:
        raise ListError(f"{error}\nnothing was written") from None
    write_list(path, data, args.overwrite)
    notes = [note for source in sources.values() for note in source.notes]
    print(*notes, "", count_table(data), "", f"wrote {path}", "next:", sep="\n")
    where = f"--datalist {shlex.quote(str(path))} --dataset_dir {shlex.quote(str(root))}"
    print(f"  {train_command('multimix')} --dataset datalist {where}")


def read_sources(args: argparse.Namespace, root: Path) -> dict[str, ChestSource]:
    """Read the folders of all options; raise one error for those that cannot be read."""
    if not (args.classification or args.segmentation):
        raise ListError("give --classification DIR or --segmentation DIR, or both")
    for role in TASKS:
        if getattr(args, f"cross_{role}") and not getattr(args, role):
            raise ListError(f"--cross_{role} needs --{role}, the images to train on")
    sources: dict[str, ChestSource] = {}
    errors: list[str] = []

    def read(role: str, folder: str | None, reader: Callable[..., ChestSource], *options: Any) -> None:
        if folder is not None:
            try:
                sources[role] = reader(folder, root, *options)
            except ListError as error:
                errors.append(str(error))

    read("classification", args.classification, read_classification, args.classes, args.class_group_pattern)
    classes = sources["classification"].classes if "classification" in sources else args.classes
    read("segmentation", args.segmentation, read_segmentation, args.mask_values, args.mask_group_pattern)
    read("cross_classification", args.cross_classification, read_classification, classes)
    read("cross_segmentation", args.cross_segmentation, read_segmentation, args.cross_mask_values)
    for number, folder in enumerate(args.unlabelled or ()):
        read(f"unlabelled {number}", folder, read_unlabelled)
    if errors:
        raise ListError("\n".join(errors))
    for role, source in sources.items():
        if role.startswith("cross_"):  # a test only: what has no label or mask, and the publisher's split, are no use
            source.entries = [entry for entry in source.entries if entry.label is not None]
            for entry in source.entries:
                entry.split = None
    return sources


def check_sources(sources: dict[str, ChestSource], max_pixels: int) -> None:
    """Check every file, mask and class; raise one error with all problems."""
    everything = Source("", Path())
    for role, source in sources.items():
        whole = [entry for entry in check_files(source, max_pixels) if source.masks.get(entry.image)]
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(mask_problem, whole, [source] * len(whole)))
        source.problems["unusable mask"] += [problem for problem in found if problem]
        if role == "classification":
            check_classes(source)
        for kind, items in source.problems.items():
            everything.problems[kind] += items
    everything.fail_if_problems()


def mask_problem(entry: Entry, source: ChestSource) -> str | None:
    """Say why the mask of an image cannot be used, or None."""
    try:
        height, width = read_image(source.root / path_of(entry.image), 1).shape[:2]
        read_mask(
            [source.root / path_of(mask) for mask in source.masks[entry.image]], source.mask_values, (height, width)
        )
    except (ImageError, MaskError) as error:
        return str(error)
    return None


def build(sources: dict[str, ChestSource], args: argparse.Namespace) -> dict[str, Any]:
    """Split, apply the budgets, and put the entries of all sources together."""
    tasks = [task for task in TASKS if task in sources]
    data: dict[str, Any] = {"name": "-".join(sources[task].name for task in tasks), "seed": args.seed}
    budgets = {"classification": args.class_labels, "segmentation": args.mask_labels}
    ways = []
    for task in tasks:
        ways.append(f"{sources[task].name}: {split(sources[task], args.val_fraction, args.seed)}")
        apply_number(sources[task], budgets[task], args.seed, f"--{'class' if task == TASKS[0] else 'mask'}_labels")
    data["split"] = "; ".join(ways)
    if "classification" in sources:
        data["labels"] = {str(i): name for i, name in enumerate(sources["classification"].classes)}
    data |= {f"{word}_labels": budgets[t] for t, word in zip(TASKS, ("class", "mask"), strict=True) if t in sources}
    items: dict[str, list[dict[str, Any]]] = {section: [] for section in ALL_SECTIONS}
    for role, source in sources.items():
        task = role.removeprefix("cross_")
        for entry in source.entries:
            section = "unlabelled" if entry.label is None else entry.split or "cross_domain"
            # Pictures of a user's own go to every stream there is.
            stream = task if task in TASKS else tasks[0] if len(tasks) == 1 else None
            items[section].append(as_item(entry, source, stream))
    for section in ALL_SECTIONS:
        if items[section] or section in SECTIONS:
            data[section] = sorted(items[section], key=lambda item: item["image"])
    return data


def as_item(entry: Entry, source: ChestSource, task: str | None) -> dict[str, Any]:
    """Write an entry as an item of the list; only what is known."""
    item: dict[str, Any] = {"image": name_of(entry.image)}
    if entry.label is None:
        item["task"] = task
    elif source.masks.get(entry.image):
        masks = [name_of(mask) for mask in source.masks[entry.image]]
        item |= {"mask": masks[0] if len(masks) == 1 else masks, "mask_values": source.mask_values}
    else:
        item["label"] = entry.label
    item |= {"group": entry.group, "source": source.name}
    return {key: value for key, value in item.items() if value is not None}


def split(source: ChestSource, val_fraction: float, seed: int) -> str:
    """Give every labelled entry a section: the publisher's, else by shares; return the words that describe how."""
    published = {entry.split for entry in source.entries if entry.split}
    train = 1 - val_fraction if published else 1 - TEST_SHARE - val_fraction
    fractions = (train, val_fraction, 0 if published else TEST_SHARE)
    words = assign_splits(source, None if "validation" in published else fractions, seed)
    for entry in source.entries:
        if entry.label is None:
            entry.split = None
    return words


def apply_number(source: ChestSource, number: int | str, seed: int, option: str) -> None:
    """Take the labels off the training images beyond the budget; their copies with a label are left out."""
    training = sorted((e for e in source.entries if e.split == "training"), key=lambda e: e.image)
    classes = len({entry.label for entry in training})
    if number != "all" and not classes <= int(number) <= len(training):
        raise ListError(f"{option} {number}: expected {classes} (one of every class) to {len(training)}, or all")
    labels: Any = [entry.label for entry in training]
    kept = set(range(len(training)) if number == "all" else choose_labelled(labels, int(number), seed))
    known = {training[i].digest for i in kept}
    for i in set(range(len(training))) - kept:
        training[i].label = training[i].split = None
    copies = [entry for entry in source.entries if entry.label is None and entry.digest in known]
    if copies:
        source.notes.append(f"{source.name}: {len(copies)} unlabelled images are copies of labelled ones: left out")
        source.entries = [entry for entry in source.entries if not any(entry is copy for copy in copies)]


def default_name(sources: dict[str, ChestSource], args: argparse.Namespace) -> str:
    """Name a list after its sources, budgets and seed."""
    parts = [file_name("-".join(sources[task].name for task in TASKS if task in sources))]
    parts += [f"{args.class_labels}class"] if "classification" in sources else []
    parts += [f"{args.mask_labels}mask"] if "segmentation" in sources else []
    return "_".join([*parts, f"seed{args.seed}.json"])


def count_table(data: dict[str, Any]) -> str:
    """Count the images by source, class (or mask, or neither) and section."""
    sections = [section for section in ALL_SECTIONS if section in data]
    counts: Counter[tuple[str, str, str]] = Counter()
    for section in sections:
        for item in data[section]:
            what = data["labels"][str(item["label"])] if "label" in item else "mask" if "mask" in item else "unlabelled"
            counts[item["source"], what, section] += 1
    rows = [["source", "", *sections]]
    for source, what in dict.fromkeys(key[:2] for key in counts):
        rows.append([source, what, *(str(counts[source, what, section] or "-") for section in sections)])
    rows.append(["images", "", *(str(len(data[section])) for section in sections)])
    return aligned(rows, words=2)
